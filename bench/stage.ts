import postgres from 'postgres'
import { createDatabase } from '../src/db/create-database.ts'
import { stageForward } from '../src/db/staged-transaction.ts'
import { newAttempt } from '../src/db/transaction-name.ts'
import { openBenchContext } from './context.ts'
import { type Bench, compare, ratePerSecond } from './measure.ts'

const connections = 4

/**
 * An effect-free staged transaction (marker included) against a hand-written one that has none:
 * BEGIN, INSERT, PREPARE and COMMIT PREPARED in one flush, the same driver, as many connections.
 */
export const stage: Bench = async (servers, quick) => {
  // Short rounds and many of them: a slow moment of the machine hits few of them, and both sides alike.
  const seconds = 0.5
  const url = await createDatabase(servers.postgres, 'bench_stage')
  const { ctx, close } = await openBenchContext(url)
  const { primary } = ctx.databases
  await primary.sql`create table work (id bigint generated always as identity primary key, note text not null)`
  const plain = postgres(url, { max: connections, onnotice: () => undefined })
  const reserved = await Promise.all(Array.from({ length: connections }, () => plain.reserve()))
  let serial = 0
  try {
    const row = await compare(
      { name: 'effect-free staged transaction', unit: 'transactions/s', bar: 0.8, rounds: quick ? 9 : 41 },
      () =>
        ratePerSecond(connections, seconds, async () => {
          const attempt = newAttempt(ctx.lease.id)
          const name = `bench_${++serial}`
          await stageForward(primary, { installation: ctx.installation, attempt, name }, (tx, send) => {
            send(tx`insert into work (note) values (${name})`)
          })
        }),
      () =>
        ratePerSecond(connections, seconds, async (connection) => {
          const sql = reserved[connection]
          if (!sql) return
          const gid = `plain_${++serial}`
          await Promise.all([
            sql.unsafe('begin'),
            sql`insert into work (note) values (${gid})`,
            sql.unsafe(`prepare transaction '${gid}'`),
            sql.unsafe(`commit prepared '${gid}'`),
          ])
        }),
    )
    return [row]
  } finally {
    for (const sql of reserved) sql.release()
    await plain.end()
    await close()
  }
}
