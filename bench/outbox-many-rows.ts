import { createDatabase, dropDatabase } from '../src/db/create-database.ts'
import type { OpenSink } from '../src/jobs/sinks/sink.ts'
import { Relays } from '../test/support/relays.ts'
import { openBenchContext } from './context.ts'
import { fillInDatabase } from './fill-in-database.ts'
import { type Bench, type BenchServers, compare } from './measure.ts'
import { OutboxToRedis, sinkName } from './outbox-to-redis.ts'

const batch = 50_000
const few = 10_000

/**
 * Draining a fresh batch from an outbox that holds ten million rows already published, against one that holds ten
 * thousand. The small one is made anew for each round, so that it stays small.
 */
export const outboxManyRows: Bench = async (servers, quick) => {
  const many = quick ? 1_000_000 : 10_000_000
  const large = await openFilled(servers, 'bench_many_rows', many)
  try {
    const row = await compare(
      {
        name: `with ${many / 1_000_000} M rows in the outbox`,
        unit: 'events/s',
        bar: 0.77,
        rounds: quick ? 5 : 7,
      },
      async () => {
        await large.append(batch)
        return large.drain(batch)
      },
      async () => {
        const small = await openFilled(servers, 'bench_few_rows', few)
        try {
          await small.append(batch)
          return await small.drain(batch)
        } finally {
          await small.close()
          await dropDatabase(servers.postgres, small.stream)
        }
      },
    )
    return [row]
  } finally {
    await large.close()
    await dropDatabase(servers.postgres, large.stream)
  }
}

/** An outbox with so many rows, all of them published, as after some time of work. */
async function openFilled(servers: BenchServers, database: string, rows: number): Promise<OutboxToRedis> {
  const { ctx, close } = await openBenchContext(await createDatabase(servers.postgres, database))
  const { sql } = ctx.databases.primary
  try {
    await timed(`${database}: appending ${rows} events`, rows, () =>
      fillInDatabase(ctx.databases.primary, rows, 3),
    )
    await timed(`${database}: passing the cursors over them`, rows, async () => {
      const relays = new Relays(ctx, takesAll, { sink: sinkName, pageSize: 10_000 })
      await relays.drain(new AbortController().signal)
    })
    // What autovacuum does in between, and would otherwise do while we measure.
    await timed(`${database}: vacuum`, rows, async () => {
      await sql`vacuum (analyze) holdfast.outbox`
      await sql`checkpoint`
    })
  } finally {
    await close()
  }
  const outbox = await OutboxToRedis.open(servers, database)
  // The connections are open before anything is measured.
  await outbox.append(1_000)
  await outbox.drain(1_000)
  return outbox
}

const takesAll: OpenSink = { publish: async () => ({ rejected: [] }), close: async () => undefined }

async function timed(what: string, rows: number, work: () => Promise<void>): Promise<void> {
  const started = performance.now()
  await work()
  if (rows >= 1_000_000)
    process.stderr.write(`  ${what}: ${((performance.now() - started) / 1_000).toFixed(1)} s\n`)
}
