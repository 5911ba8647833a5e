import { Logger, run, runMigrations } from 'graphile-worker'
import { Redis } from 'ioredis'
import pg from 'pg'
import { answerRounds } from './rounds.mjs'

/**
 * One task for each event. What its documentation says makes it fast: many jobs at once, fetched and completed in batches;
 * XADDs that are made in one turn of the event loop go in one pipeline.
 */
const [connectionString, redisUrl, stream] = process.argv.slice(2)
const pool = new pg.Pool({ connectionString, max: 2 })
pool.on('error', () => undefined)
const redis = new Redis(redisUrl, { enableAutoPipelining: true })
/** @type {Set<string>} */
const troubles = new Set(['error', 'warning'])
const preset = {
  worker: {
    concurrentJobs: 24,
    localQueue: { size: 5_000 },
    completeJobBatchDelay: 0,
    failJobBatchDelay: 0,
    maxPoolSize: 26,
    connectionString,
    logger: new Logger(() => (level, said) => {
      if (troubles.has(level)) process.stderr.write(`  graphile-worker: ${said}\n`)
    }),
  },
}
await runMigrations({ preset })

await answerRounds({
  async fill(events) {
    await redis.del(stream)
    await pool.query(
      `insert into graphile_worker._private_tasks (identifier) values ('publish') on conflict do nothing`,
    )
    await pool.query(
      `select count(graphile_worker.add_job('publish', json_build_object(
        'id', uuidv7(), 'type', 'order.placed', 'subject', 'order-' || n, 'time', clock_timestamp(),
        'data', json_build_object('order', n, 'total', 1234, 'currency', 'EUR',
          'items', '[{"sku":"A-1","quantity":2}]'::json))))
      from generate_series(1, $1::int) n`,
      [events],
    )
  },
  async drain(events) {
    const publish = async (payload) => {
      await redis.xadd(stream, '*', 'event', JSON.stringify({ specversion: '1.0', ...payload }))
    }
    const runner = await run({ preset, taskList: { publish } })
    let completed = 0
    await new Promise((resolve) => {
      runner.events.on('job:complete', () => {
        completed++
        if (completed === events) resolve()
      })
    })
    return () => runner.stop()
  },
  there: () => redis.xlen(stream),
})
