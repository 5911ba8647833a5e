import { defineConfig } from 'holdfast'

export default defineConfig({
  databases: { primary: 'embedded' },
  // How long the key of a killed process stays claimed; the default is 15 seconds.
  timing: { leaseMs: 2_000 },
})
