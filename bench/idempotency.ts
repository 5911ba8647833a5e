import postgres from 'postgres'
import { createDatabase } from '../src/db/create-database.ts'
import { expireIdempotencyKeys } from '../src/jobs/expire-idempotency-keys.ts'
import { idempotent } from '../src/jobs/idempotent.ts'
import { openBenchContext } from './context.ts'
import { type Bench, compare, type Measurement, ratePerSecond } from './measure.ts'

const connections = 4

/**
 * A call with an idempotency key that inserts a row: against two bare committed statements of which one inserts the same row,
 * and against the statements that the call consists of, by hand. The same driver, as many at once. What a call saves is a wait
 * for the disk, so it is measured once more where that wait is a millisecond longer.
 */
export const idempotency: Bench = async (servers, quick) => [
  ...(await calls(servers.postgres, quick, 0)),
  ...(await calls(servers.postgres, quick, 1)),
  await expiry(servers.postgres, quick),
]

async function calls(server: string, quick: boolean, delayMs: number): Promise<Measurement[]> {
  // Short rounds and many of them: a slow moment of the machine hits few of them, and both sides alike.
  const seconds = 0.5
  const url = await createDatabase(server, `bench_idempotency_${delayMs}`)
  await delayCommits(url, delayMs)
  const { ctx, close } = await openBenchContext(url)
  const { primary } = ctx.databases
  await primary.sql`create table work (id bigint generated always as identity primary key, note text not null)`
  await primary.sql`create table plain (key text primary key, note text not null)`
  const plain = postgres(url, { max: connections, onnotice: () => undefined })
  const reserved = await Promise.all(Array.from({ length: connections }, () => plain.reserve()))
  let serial = 0
  const rateOf = (run: (sql: postgres.ReservedSql, key: string) => Promise<unknown>) => () =>
    ratePerSecond(connections, seconds, async (connection) => {
      const sql = reserved[connection]
      if (sql) await run(sql, `key_${++serial}`)
    })
  const ours = rateOf((_, key) =>
    idempotent(ctx, { scope: 'bench', key, fingerprint: { note: key } }, async (tx) => {
      await tx`insert into work (note) values (${key})`
      return { key }
    }),
  )
  const bare = rateOf(async (sql, key) => {
    await sql`insert into plain (key, note) values (${key}, '')`
    await sql`insert into work (note) values (${key})`
  })
  const name = delayMs === 0 ? 'idempotent call' : `idempotent call, commits ${delayMs} ms slower`
  const whole = { unit: 'calls/s', rounds: quick ? 9 : 41 }
  const byHand = { unit: 'calls/s', rounds: quick ? 5 : 15, bar: 0 }
  try {
    return [
      await compare({ name, bar: 0.7, ...whole }, ours, bare),
      await compare({ name: `${name}, against its statements by hand`, ...byHand }, ours, rateOf(callByHand)),
    ]
  } finally {
    for (const sql of reserved) sql.release()
    await plain.end()
    await close()
  }
}

/** As on a slower disk: whoever flushes the log waits first, and those who come meanwhile share the flush. */
async function delayCommits(url: string, ms: number): Promise<void> {
  const sql = postgres(url, { max: 1 })
  const database = sql(new URL(url).pathname.slice(1))
  await sql`alter database ${database} set commit_delay = ${sql.unsafe(String(1_000 * ms))}`
  await sql`alter database ${database} set commit_siblings = 0`
  await sql.end()
}

/** The three trips of a call, each in one flush, without anything around them. */
async function callByHand(sql: postgres.ReservedSql, key: string): Promise<void> {
  const fingerprint = Buffer.alloc(32)
  const [claim] = await sql<{ token: string }[]>`
    select token from holdfast.claim_idempotency_key('bench', ${key}, ${fingerprint}, '15 s', '1 day')`
  const token = claim?.token ?? '0'
  await Promise.all([
    sql.unsafe(`BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL holdfast.claim = '${token}'`),
    sql`insert into work (note) values (${key})`,
  ])
  await Promise.all([
    sql.unsafe('RESET SESSION AUTHORIZATION; SET LOCAL synchronous_commit = on'),
    sql`select holdfast.complete_idempotency_key('bench', ${key}, ${token}, ${fingerprint}, ${'{}'}, '1 day')`,
    sql.unsafe('COMMIT'),
  ])
}

/** A million keys of which nine in ten are expired; against one statement that removes as many. */
async function expiry(server: string, quick: boolean): Promise<Measurement> {
  const rows = quick ? 100_000 : 1_000_000
  const { ctx, close } = await openBenchContext(await createDatabase(server, 'bench_expiry'))
  const { sql } = ctx.databases.primary
  try {
    const ours = await removalRate(rows, fill, async () => {
      await expireIdempotencyKeys(ctx, new AbortController().signal)
    })
    const limit = await removalRate(rows, fill, async () => {
      await sql`delete from holdfast.idempotency_keys where expires_at < now()`
    })
    const ratio = Math.round((100 * ours) / limit) / 100
    return { name: 'expired keys removed', unit: 'keys/s', ours, limit, ratio, bar: 0 }
  } finally {
    await close()
  }

  async function fill(): Promise<void> {
    await sql`truncate holdfast.idempotency_keys`
    await sql`
      insert into holdfast.idempotency_keys (scope, key, token, fingerprint, lease_until, expires_at, response)
      select 'bench', gen_random_uuid()::text, n, sha256(''), now(),
        now() + make_interval(hours => case when n % 10 = 0 then 1 else -1 end), '{"order":1}'
      from generate_series(1, ${rows}) n`
    await sql`vacuum analyze holdfast.idempotency_keys`
  }
}

async function removalRate(
  rows: number,
  fill: () => Promise<void>,
  remove: () => Promise<void>,
): Promise<number> {
  await fill()
  const started = performance.now()
  await remove()
  return Math.round((0.9 * rows) / ((performance.now() - started) / 1_000))
}
