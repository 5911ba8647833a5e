import { defineConfig } from 'holdfast'
import { amountToCents } from './amount-to-cents.mjs'

export default defineConfig({
  databases: { primary: 'embedded' },
  batches: [amountToCents],
  // So that the work of a killed worker is taken over within seconds; the defaults take half a minute.
  timing: { leaseMs: 2_000, lockMs: 2_000, recoverEveryMs: 2_000, assertEveryMs: 250 },
})
