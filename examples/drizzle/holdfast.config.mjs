import { defineConfig } from 'holdfast'
import { table } from 'holdfast/sinks/table'
import { shipOrder } from './ship-order.mjs'

export default defineConfig({
  databases: { reporting: 'embedded' },
  jobs: [shipOrder],
  sinks: { reporting: table({ database: 'reporting' }) },
  timing: { assertEveryMs: 250 },
})
