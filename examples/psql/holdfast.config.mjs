import { defineConfig } from 'holdfast'
import { table } from 'holdfast/sinks/table'
import { printLabel } from './print-label.mjs'

export default defineConfig({
  databases: { warehouse: 'embedded' },
  jobs: [printLabel],
  sinks: { warehouse: table({ database: 'warehouse' }) },
  timing: { assertEveryMs: 250 },
})
