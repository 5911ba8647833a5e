import { Client, Pool } from 'pg'
import postgres from 'postgres'
import { describe, expect, it, onTestFinished } from 'vitest'
import type { Participant } from '../../src/db/databases.ts'
import { InvalidPayloadError } from '../../src/db/errors.ts'
import type { EventRunner } from '../../src/db/event-runner.ts'
import { recordSeen, removeOldSeen } from '../../src/db/inbox-seen.ts'
import { sqlstateOf } from '../../src/db/sqlstate.ts'
import type { Tx } from '../../src/db/tx.ts'
import { beginDistributed } from '../../src/jobs/begin.ts'
import { cleanStaleTransactions } from '../../src/jobs/clean-stale-transactions.ts'
import type { JobContext } from '../../src/jobs/context.ts'
import { commitDistributed, rollbackDistributed } from '../../src/jobs/coordinator.ts'
import { resolveConfig } from '../../src/workers/config.ts'
import { newDatabases, openContext } from '../support/database.ts'
import { meeting } from '../support/meeting.ts'

// Who waits here waits for the other's end, not for a limit.
const patient = { lockTimeoutMs: 60_000, idleTimeoutMs: 60_000 }
const ctx = await openContext(await newDatabases({ billing: 'west' }), patient)
const { primary } = ctx.databases
await primary.sql`create table effects (event text not null)`

const once = (eventId: string, consumer = 'mailer') =>
  primary.transaction((tx) => recordSeen(tx, consumer, eventId))

/** What a consumer does: its effect, if the event is new. */
const consume = (eventId: string) => async (tx: Tx) => {
  const isNew = await recordSeen(tx, 'consumer', eventId)
  if (isNew) await tx`insert into effects values (${eventId})`
  return isNew
}

async function countEffects(eventId: string): Promise<number> {
  return (await primary.sql`select 1 from effects where event = ${eventId}`).length
}

async function pgClient(): Promise<Client> {
  const client = new Client({ connectionString: primary.url })
  await client.connect()
  onTestFinished(() => client.end())
  return client
}

describe('once', () => {
  it('is true for the first transaction that commits, for each consumer and in each database', async () => {
    expect(await once('a')).toBe(true)
    expect(await once('a')).toBe(false)
    expect(await once('a', 'billing')).toBe(true)
    expect(await once('b')).toBe(true)
    const elsewhere = ctx.databases.get('billing')
    expect(await elsewhere.transaction((tx) => recordSeen(tx, 'mailer', 'a'))).toBe(true)
    const seen = await primary.transaction(async (tx) => [
      await recordSeen(tx, 'mailer', 'twice'),
      await recordSeen(tx, 'mailer', 'twice'),
    ])
    expect(seen).toEqual([true, false])
  })

  it('is forgotten with a rollback, of the transaction or to a savepoint', async () => {
    const failing = primary.transaction(async (tx) => {
      expect(await consume('rolled back')(tx)).toBe(true)
      throw new Error('no')
    })
    await expect(failing).rejects.toThrow('no')
    expect(await primary.transaction(consume('rolled back'))).toBe(true)
    expect(await countEffects('rolled back')).toBe(1)
    await primary.transaction(async (tx) => {
      await tx
        .savepoint(async (inner) => {
          await recordSeen(inner, 'mailer', 'in a savepoint')
          throw new Error('undone')
        })
        .catch(() => undefined)
    })
    expect(await once('in a savepoint')).toBe(true)
  })

  it('lets one of two concurrent transactions do the work, fifty times', async () => {
    for (let round = 0; round < 50; round++) {
      const both = meeting(2)
      const deliver = () =>
        primary.transaction(async (tx) => {
          await tx`select 1`
          await both()
          return consume(`round ${round}`)(tx)
        })
      expect((await Promise.all([deliver(), deliver()])).toSorted()).toEqual([false, true])
      expect(await countEffects(`round ${round}`)).toBe(1)
    }
  })

  it('takes a postgres.js transaction, a node-postgres client, and a mapper that answers with the rows alone', async () => {
    const sql = postgres(primary.url, { max: 1 })
    onTestFinished(() => sql.end())
    const bySql = () => sql.begin((tx) => recordSeen(tx, 'mailer', 'drivers'))
    const client = await pgClient()
    const byPg = async (end: string, runner: EventRunner = client) => {
      await client.query('begin')
      const isNew = await recordSeen(runner, 'mailer', 'drivers')
      await client.query(end)
      return isNew
    }
    const mapper = {
      query: async (text: string, values: unknown[]) => (await client.query(text, values)).rows as unknown[],
    }
    expect(await byPg('rollback')).toBe(true)
    expect(await byPg('rollback', mapper)).toBe(true)
    expect(await bySql()).toBe(true)
    expect([await bySql(), await byPg('commit'), await byPg('commit', mapper)]).toEqual([false, false, false])
  })

  it.each([
    ['REPEATABLE READ', '40001'],
    ['SERIALIZABLE', '40001'],
  ])(
    'says 40001 under %s for what was committed after the snapshot; run again it is seen',
    async (level, state) => {
      const client = await pgClient()
      await client.query(`begin isolation level ${level}`)
      await client.query('select 1')
      expect(await once(`late ${level}`)).toBe(true)
      const refused = await recordSeen(client, 'mailer', `late ${level}`).catch(sqlstateOf)
      expect(refused).toBe(state)
      await client.query('rollback')
      await client.query(`begin isolation level ${level}`)
      expect(await recordSeen(client, 'mailer', `late ${level}`)).toBe(false)
      await client.query('commit')
    },
  )

  const bad: [what: string, consumer: unknown, eventId: unknown][] = [
    ['no consumer', '', 'x'],
    ['a consumer that is too long', 'c'.repeat(201), 'x'],
    ['a consumer that is no text', undefined, 'x'],
    ['no id', 'c', ''],
    ['an id that is too long', 'c', 'x'.repeat(201)],
    ['an id that is no text', 'c', 7],
    ['U+0000', 'c', 'a\u0000'],
    ['a lone surrogate', 'c\ud800', 'x'],
  ]
  it.each(bad)('refuses %s, and the transaction can go on', async (_what, consumer, eventId) => {
    await primary.transaction(async (tx) => {
      await expect(recordSeen(tx, consumer as string, eventId as string)).rejects.toThrow(InvalidPayloadError)
      await tx`select 1`
    })
  })

  it('takes texts of 200 characters, whatever they are', async () => {
    expect(await once('\u{1f980}'.repeat(100), '漢'.repeat(200))).toBe(true)
    expect(await once('\u{1f980}'.repeat(100), '漢'.repeat(200))).toBe(false)
  })

  it('refuses a pool, which is no transaction, and what does not answer with rows', async () => {
    const pool = new Pool({ connectionString: primary.url })
    onTestFinished(() => pool.end())
    for (const runner of [primary.sql, pool, {}, null, undefined])
      await expect(recordSeen(runner as never, 'mailer', 'pool')).rejects.toThrow(
        'once needs the transaction',
      )
    expect(await once('pool')).toBe(true)
    const deaf = { query: async () => undefined }
    await expect(recordSeen(deaf, 'mailer', 'deaf')).rejects.toThrow('answers with rows')
  })
})

describe('once in a distributed transaction', () => {
  /** Those of this database who wait for the end of a transaction that is prepared. */
  const waitForPrepared = async () =>
    (
      await primary.sql`
        select l.pid from pg_locks l join pg_prepared_xacts p on p.transaction = l.transactionid
        where l.locktype = 'transactionid' and not l.granted and l.pid is not null
          and p.database = current_database()`
    ).length

  it.each([
    ['committed', false, commitDistributed],
    ['rolled back', true, (of: JobContext, name: string) => rollbackDistributed(of, name, 'test')],
  ])('keeps others waiting while it is prepared, and once it is %s they know', async (end, isNew, finish) => {
    const event = `prepared and ${end}`
    const name = `once_${isNew}`
    expect((await beginDistributed(ctx, name, consume(event))).staged).toBe(true)
    const other = primary.transaction(consume(event))
    await expect.poll(waitForPrepared).toBe(1)
    await finish(ctx, name)
    expect(await other).toBe(isNew)
    expect(await countEffects(event)).toBe(1)
  })
})

describe('consumers of a stream that repeats itself', () => {
  it('do as many things as there are events, in parallel, at random, and with failures', async () => {
    const events = Array.from({ length: 60 }, (_, i) => `event ${i}`)
    const deliveries = events
      .flatMap((event) => Array.from({ length: 1 + Math.floor(Math.random() * 5) }, () => event))
      .map((event) => ({ event, at: Math.random() }))
      .toSorted((a, b) => a.at - b.at)
      .map(({ event }) => event)
    await primary.sql`create table counter (n bigint not null)`
    await primary.sql`insert into counter values (0)`
    const worker = async () => {
      for (let next = deliveries.pop(); next !== undefined; next = deliveries.pop()) {
        const event = next
        const fails = Math.random() < 0.2
        const done = primary.transaction(async (tx) => {
          if (await recordSeen(tx, 'counting', event)) await tx`update counter set n = n + 1`
          if (fails) throw new Error('delivered again')
        })
        await done.catch((error: Error) => {
          if (error.message !== 'delivered again') throw error
          deliveries.push(event)
        })
      }
    }
    await Promise.all(Array.from({ length: 4 }, worker))
    expect(await primary.sql`select n::int from counter`).toEqual([{ n: events.length }])
    expect(await primary.sql`select 1 from holdfast.inbox_seen where consumer = 'counting'`).toHaveLength(
      events.length,
    )
  })
})

describe('retention of what was seen', () => {
  const signal = new AbortController().signal
  const dayMs = 86_400_000
  const others = { transactionsMs: 30 * dayMs, eventsMs: 90 * dayMs }

  /** That many seen 31 days ago and 3 seen 29 days ago. */
  async function addSeen({ sql }: Participant, old: number): Promise<void> {
    await sql`
      insert into holdfast.inbox_seen (consumer, event_id, seen_at)
      select 'kept', n::text, clock_timestamp() - make_interval(days => case when n > 3 then 31 else 29 end)
      from generate_series(1, ${old + 3}::int) n`
  }
  const kept = async ({ sql }: Participant) =>
    (
      await sql<
        { id: string }[]
      >`select event_id as id from holdfast.inbox_seen where consumer = 'kept' order by 1`
    ).map(({ id }) => id)

  it('removes what is old, a batch at a time, and passes over what somebody holds', async () => {
    await addSeen(primary, 25)
    const remove = () => primary.transaction((tx) => removeOldSeen(tx, 30 * dayMs, 10))
    const client = await pgClient()
    await client.query('begin')
    await client.query(
      `select 1 from holdfast.inbox_seen where consumer = 'kept' and event_id = '28' for update`,
    )
    expect([await remove(), await remove(), await remove(), await remove()]).toEqual([10, 10, 4, 0])
    await client.query('commit')
    expect(await remove()).toBe(1)
    expect(await kept(primary)).toEqual(['1', '2', '3'])
  })

  it('is part of the clean-up, in every database: batch by batch, in the coordinator with its bookkeeping', async () => {
    const cleaned = await openContext(await newDatabases({ billing: 'west' }))
    for (const participant of cleaned.databases.all) await addSeen(participant, 12_000)
    expect(await cleanStaleTransactions(cleaned, others, signal)).toMatchObject({ seen: 0 })
    const retention = { ...others, seenMs: 30 * dayMs }
    expect(await cleanStaleTransactions(cleaned, retention, signal)).toMatchObject({ seen: 24_000 })
    for (const participant of cleaned.databases.all) expect(await kept(participant)).toEqual(['1', '2', '3'])
    // One of the clean-up before; and three, of 5,000, 5,000 and 2,000.
    expect(await cleaned.databases.primary.sql`select 1 from holdfast.job_runs`).toHaveLength(1 + 3)
  })

  it('is 30 days unless the config says otherwise', () => {
    expect(resolveConfig({}, {}).retention.seenMs).toBe(30 * dayMs)
    expect(resolveConfig({ retention: { seenMs: dayMs } }, {}).retention.seenMs).toBe(dayMs)
    expect(() => resolveConfig({ retention: { seenMs: 0 } }, {})).toThrow('seenMs')
  })
})
