import { defineBatch } from '../../src/jobs/batch-definition.ts'
import { defineJob } from '../../src/jobs/job-definition.ts'
import { keyset } from '../../src/jobs/keyset.ts'
import { table } from '../../src/jobs/sinks/table.ts'
import { defineConfig } from '../../src/workers/config.ts'
import { copyBatch } from './scenarios.ts'

/** The config of the worker processes that the tests start; databases come from the environment. */
export default defineConfig({
  databases: { billing: 'embedded' },
  jobs: [
    defineJob({
      name: 'count',
      async stage({ tx, input }) {
        await tx`insert into target values (${(input as { id: number }).id})`
      },
    }),
  ],
  batches: [
    copyBatch,
    { ...copyBatch, name: 'copy-ranges', parallel: 3, chunkSize: 25 },
    defineBatch({
      name: 'hang',
      source: keyset({ table: 'source', key: ['id'] }),
      async process(_rows, { log }) {
        log.info('hanging')
        await new Promise(() => undefined)
      },
    }),
  ],
  sinks: { inbox: table({ database: 'billing' }) },
  timing: {
    leaseMs: 1_000,
    lockMs: 1_000,
    pollMs: 50,
    recoverEveryMs: 500,
    assertEveryMs: 200,
    drainMs: 20_000,
  },
})
