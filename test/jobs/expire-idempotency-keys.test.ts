import { describe, expect, it } from 'vitest'
import { claimKey, hashFingerprint } from '../../src/db/idempotency-keys.ts'
import type { JobContext } from '../../src/jobs/context.ts'
import { expireIdempotencyKeys } from '../../src/jobs/expire-idempotency-keys.ts'
import { idempotent } from '../../src/jobs/idempotent.ts'
import { newDatabases, openContext } from '../support/database.ts'
import { preparedGids } from '../support/prepared-gids.ts'

const signal = new AbortController().signal

/** A row as a call leaves it; times in hours from now. */
async function addKeys(
  { databases }: JobContext,
  name: string,
  row: { expires: number; lease: number; completed: boolean; n?: number },
): Promise<void> {
  await databases.primary.sql`
    insert into holdfast.idempotency_keys (scope, key, token, fingerprint, lease_until, expires_at, response)
    select 's', ${name} || n, nextval('holdfast.idempotency_token'), '', clock_timestamp() + make_interval(hours => ${row.lease}),
      clock_timestamp() + make_interval(hours => ${row.expires}), ${row.completed ? '1' : null}::text::json
    from generate_series(1, ${row.n ?? 1}) n`
}

async function keysOf({ databases }: JobContext): Promise<string[]> {
  const rows = await databases.primary.sql<
    { key: string }[]
  >`select key from holdfast.idempotency_keys order by key`
  return rows.map(({ key }) => key)
}

async function runsOf({ databases }: JobContext) {
  return [
    ...(await databases.primary
      .sql`select result from holdfast.job_runs where job = 'expire-idempotency-keys' order by at`),
  ]
}

describe('expire-idempotency-keys', () => {
  it('removes what has expired, batch by batch, and nothing that lives, and books its run', async () => {
    const ctx = await openContext(await newDatabases())
    await addKeys(ctx, 'expired', { expires: -1, lease: -2, completed: true, n: 7 })
    await addKeys(ctx, 'expired-early', { expires: -1, lease: 1, completed: true })
    await addKeys(ctx, 'abandoned', { expires: -1, lease: -2, completed: false })
    await addKeys(ctx, 'abandoned-lately', { expires: 1, lease: -2, completed: false })
    await addKeys(ctx, 'at-work', { expires: -1, lease: 1, completed: false })
    await addKeys(ctx, 'kept', { expires: 1, lease: -2, completed: true })
    expect(await expireIdempotencyKeys(ctx, signal, 2)).toEqual({ keys: 9 })
    expect(await keysOf(ctx)).toEqual(['abandoned-lately1', 'at-work1', 'kept1'])
    expect(await runsOf(ctx)).toEqual([{ result: { keys: 9 } }])
    const names = await ctx.databases.primary.sql<{ name: string }[]>`
      select name from holdfast.transaction_audit where name like 'expire_keys_%' and event = 'committed'`
    // Nine in twos: five, the last not full.
    expect(new Set(names.map(({ name }) => name)).size).toBe(5)
    expect(await preparedGids(ctx)).toEqual([])
  })

  it('books also a run that found nothing', async () => {
    const ctx = await openContext(await newDatabases())
    expect(await expireIdempotencyKeys(ctx, signal)).toEqual({ keys: 0 })
    expect(await runsOf(ctx)).toEqual([{ result: { keys: 0 } }])
  })

  it('runs twice at once without harm: each key is removed by one of them', async () => {
    const urls = await newDatabases()
    const [one, other] = [await openContext(urls), await openContext(urls)]
    await addKeys(one, 'expired', { expires: -1, lease: -2, completed: true, n: 400 })
    await addKeys(one, 'kept', { expires: 1, lease: -2, completed: true })
    const reports = await Promise.all([one, other].map((ctx) => expireIdempotencyKeys(ctx, signal, 20)))
    // What one had locked, the other left out.
    const rest = await expireIdempotencyKeys(one, signal, 20)
    expect(reports[0]!.keys + reports[1]!.keys + rest.keys).toBe(400)
    expect(await keysOf(one)).toEqual(['kept1'])
  })

  it('leaves out a key that is being claimed anew, and removes it from under nobody', async () => {
    const ctx = await openContext(await newDatabases())
    await addKeys(ctx, 'expired', { expires: -1, lease: -2, completed: true })
    const { primary } = ctx.databases
    await primary.transaction(async (tx) => {
      await tx`update holdfast.idempotency_keys set response = null, lease_until = clock_timestamp() + interval '1 hour'`
      expect(await expireIdempotencyKeys(ctx, signal)).toEqual({ keys: 0 })
    })
    expect(await expireIdempotencyKeys(ctx, signal)).toEqual({ keys: 0 })
    expect(await keysOf(ctx)).toEqual(['expired1'])
  })

  it('lets a call wait for the moment that a removal takes', async () => {
    const urls = await newDatabases()
    const [ctx, other] = [await openContext(urls), await openContext(urls)]
    await addKeys(ctx, 'expired', { expires: -1, lease: -2, completed: true })
    let called: Promise<unknown> | undefined
    await other.databases.primary.transaction(async (tx) => {
      await tx`delete from holdfast.idempotency_keys`
      const id = { scope: 's', key: 'expired1' }
      const asked = claimKey(other.databases.primary, id, hashFingerprint(null), { leaseMs: 1, ttlMs: 1 })
      expect(await asked).toMatchObject({ state: 'busy' })
      const [now] = await other.databases.primary.sql<{ at: string }[]>`select clock_timestamp()::text as at`
      called = idempotent(ctx, { ...id, wait: 60_000 }, () => 'anew')
      called.catch(() => undefined)
      // It has asked, and was told that somebody is at the row.
      await expect
        .poll(
          async () => {
            const done = await other.databases.primary.sql`
            select from pg_stat_activity
            where datname = current_database() and state = 'idle' and query_start > ${now!.at}::text::timestamptz
              and query like '%claim_idempotency_key%' and pid <> pg_backend_pid()`
            return done.length
          },
          { interval: 5 },
        )
        .toBeGreaterThan(0)
    })
    expect(await called).toEqual({ response: 'anew', replayed: false })
  })

  it('finds what has expired by the index', async () => {
    const ctx = await openContext(await newDatabases())
    await addKeys(ctx, 'kept', { expires: 1, lease: -2, completed: true, n: 20_000 })
    const { sql } = ctx.databases.primary
    await sql`analyze holdfast.idempotency_keys`
    const plan = await sql.unsafe(`explain
      select ctid from holdfast.idempotency_keys
      where expires_at <= statement_timestamp() and (response is not null or lease_until <= statement_timestamp())
      order by expires_at limit 10000 for update skip locked`)
    expect(JSON.stringify(plan)).toContain('idempotency_keys_expiry')
  })
})
