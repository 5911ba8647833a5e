import { setTimeout as pause } from 'node:timers/promises'
import { Redis } from 'ioredis'
import pg from 'pg'
import outbox from 'pg-transactional-outbox'
import { answerRounds } from './rounds.mjs'

/**
 * Its replication listener, which needs `wal_level = logical`: the polling one reads all that is unpublished for each
 * batch. Ten messages at once were the fastest of its concurrency controllers (each key one after the other, thirty at
 * once, one); the protections that its documentation calls dispensable for an outbox are off.
 */
const [connectionString, redisUrl, stream] = process.argv.slice(2)
const pool = new pg.Pool({ connectionString, max: 2 })
const redis = new Redis(redisUrl, { enableAutoPipelining: true })
const table = { outboxOrInbox: 'outbox', database: 'bench', schema: 'public', table: 'outbox' }
const replication = { publication: 'bench_peer', replicationSlot: 'bench_peer' }
const config = {
  outboxOrInbox: 'outbox',
  dbListenerConfig: { connectionString },
  dbHandlerConfig: { connectionString, max: 12 },
  settings: {
    dbSchema: table.schema,
    dbTable: table.table,
    dbPublication: replication.publication,
    dbReplicationSlot: replication.replicationSlot,
    enableMaxAttemptsProtection: false,
    enablePoisonousMessageProtection: false,
  },
}
const problem = (...said) =>
  process.stderr.write(`  pg-transactional-outbox: ${said.map(String).join(' ')}\n`)
const logger = { ...outbox.getDisabledLogger(), fatal: problem, error: problem }

await pool.query(outbox.DatabaseSetup.dropAndCreateTable(table))
await pool.query(
  `create publication ${replication.publication} for table ${table.schema}.${table.table} with (publish = 'insert')`,
)
await pool.query(`select pg_create_logical_replication_slot($1, 'pgoutput')`, [replication.replicationSlot])

await answerRounds({
  async fill(events) {
    await redis.del(stream)
    await pool.query(
      `insert into outbox (id, aggregate_type, aggregate_id, message_type, segment, payload)
      select uuidv7(), 'order', n, 'order.placed', 'order-' || n, json_build_object(
        'order', n, 'total', 1234, 'currency', 'EUR', 'items', '[{"sku":"A-1","quantity":2}]'::json)
      from generate_series(1, $1::int) n`,
      [events],
    )
  },
  async drain(events) {
    let handled = 0
    let stop = async () => undefined
    await new Promise((resolve) => {
      const handle = async ({ id, messageType, segment, createdAt, payload }) => {
        const event = {
          specversion: '1.0',
          id,
          type: messageType,
          subject: segment,
          time: createdAt,
          data: payload,
        }
        await redis.xadd(stream, '*', 'event', JSON.stringify(event))
        handled++
        if (handled === events) resolve()
      }
      const strategies = {
        concurrencyStrategy: outbox.createReplicationSemaphoreConcurrencyController(10),
      }
      ;[stop] = outbox.initializeReplicationMessageListener(config, { handle }, logger, strategies)
    })
    await settled('select count(*) = 0 as done from outbox where processed_at is null')
    return async () => {
      await stop()
      await settled('select not bool_or(active) as done from pg_replication_slots')
    }
  },
  there: () => redis.xlen(stream),
})

async function settled(query) {
  for (;;) {
    const { rows } = await pool.query(query)
    if (rows[0].done) return
    await pause(5)
  }
}
