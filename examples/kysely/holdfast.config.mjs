import { defineConfig } from 'holdfast'
import { openAccount } from './open-account.mjs'

export default defineConfig({
  databases: { mailing: 'embedded' },
  jobs: [openAccount],
  timing: { assertEveryMs: 250 },
})
