import { defineConfig } from 'holdfast'
import { placeOrder } from './place-order.mjs'

export default defineConfig({
  databases: { primary: 'embedded', inventory: 'embedded' },
  jobs: [placeOrder],
  // So that the jobs of a killed worker are taken over within seconds; the defaults take half a minute.
  timing: { leaseMs: 2_000, lockMs: 2_000, recoverEveryMs: 2_000, assertEveryMs: 250 },
})
