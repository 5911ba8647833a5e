import { defineConfig } from 'holdfast'
import { onboardUser } from './onboard-user.mjs'

export default defineConfig({
  databases: { primary: 'embedded' },
  jobs: [onboardUser],
  // So that the jobs of a killed worker are taken over within seconds; the defaults take half a minute.
  timing: { leaseMs: 2_000, lockMs: 2_000, recoverEveryMs: 2_000, assertEveryMs: 250 },
})
