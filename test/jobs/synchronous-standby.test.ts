import { afterEach, describe, expect, it } from 'vitest'
import { Databases, type Participant, type Sql } from '../../src/db/databases.ts'
import { UnknownOutcomeError } from '../../src/db/errors.ts'
import { isConnectionLoss } from '../../src/db/sqlstate.ts'
import { stageForward } from '../../src/db/staged-transaction.ts'
import { newAttempt } from '../../src/db/transaction-name.ts'
import type { Tx } from '../../src/db/tx.ts'
import { beginDistributed } from '../../src/jobs/begin.ts'
import type { JobContext } from '../../src/jobs/context.ts'
import { commitDistributed } from '../../src/jobs/coordinator.ts'
import { type RecoveryReport, recover } from '../../src/jobs/recovery.ts'
import { newDatabase, openContext } from '../support/database.ts'
import { preparedGids } from '../support/prepared-gids.ts'
import { usePrivateServer } from '../support/private-server.ts'

/**
 * A server whose synchronous standby is away: each durable commit waits for it, and whoever cancels that wait makes the
 * server report a success that a failover could take back.
 */
const server = usePrivateServer()
let watcher: Databases | undefined
let impatient: Impatient | undefined
const contexts: JobContext[] = []

afterEach(async () => {
  await impatient?.stop()
  impatient = undefined
  await standbyIs('not needed')
  for (const ctx of contexts.splice(0)) {
    await ctx.lease.end()
    await ctx.databases.end()
  }
  await watcher?.end()
  watcher = undefined
})

async function open(place: 'primary' | 'billing'): Promise<JobContext> {
  const here = await server.newDatabase()
  const elsewhere = await newDatabase()
  watcher = new Databases({ primary: here })
  const urls = place === 'primary' ? { primary: here } : { primary: elsewhere, billing: here }
  const ctx = await openContext(urls)
  contexts.push(ctx)
  for (const { sql } of ctx.databases.all) await sql`create table orders (id int)`
  return ctx
}

async function standbyIs(state: 'away' | 'not needed'): Promise<void> {
  if (!watcher) return
  const { sql } = watcher.primary
  const names = state === 'away' ? 'nobody' : ''
  await sql.unsafe(`alter system set synchronous_standby_names = '${names}'`)
  await sql`select pg_reload_conf()`
  // Commits wait, and no longer wait, from when the checkpointer has read it, which may be later than any backend.
  await expect.poll(() => commitWaits(sql)).toBe(state === 'away')
}

/** Whether a commit waits for the standby now; its wait is cancelled. */
async function commitWaits(sql: Sql): Promise<boolean> {
  const ended = new AbortController()
  const commit = sql`/* probe */ select pg_logical_emit_message(true, 'probe', '')`
    .catch(() => undefined)
    .finally(() => ended.abort())
  let waits = false
  while (!ended.signal.aborted && !waits) {
    const cancelled = await sql`
      select pg_cancel_backend(pid) from pg_stat_activity
      where wait_event = 'SyncRep' and query like '/* probe */%' and pid <> pg_backend_pid()`
    waits = cancelled.length > 0
  }
  await commit
  return waits
}

type Impatient = { stop(): Promise<number> }

/** Cancels whoever waits for the standby, as an impatient operator does, until told to stop. */
function cancelWaits(): Impatient {
  const { sql } = watcher!.primary
  const stopped = new AbortController()
  let cancelled = 0
  const loop = (async () => {
    while (!stopped.signal.aborted) {
      const rows = await sql`
        select pg_cancel_backend(pid) from pg_stat_activity where wait_event = 'SyncRep' and pid <> pg_backend_pid()`
      cancelled += rows.length
      await new Promise((resolve) => setTimeout(resolve, 20))
    }
  })()
  impatient = {
    async stop() {
      stopped.abort()
      await loop
      return cancelled
    },
  }
  return impatient
}

async function countOrders({ sql }: Participant): Promise<number> {
  const [row] = await sql<{ n: number }[]>`select count(*)::int as n from orders`
  return row!.n
}

async function statusOf(ctx: JobContext, name: string): Promise<string | undefined> {
  const [row] = await ctx.databases.primary.sql<{ status: string }[]>`
    select status from holdfast.distributed_transactions where name = ${name}`
  return row?.status
}

/** The process's own heartbeat may be what is cancelled, and takes what shares its connection with it. */
function isUnknown(error: unknown): boolean {
  return error instanceof UnknownOutcomeError || isConnectionLoss(error)
}

const insert = (id: number) => async (tx: Tx) => {
  await tx`insert into orders values (${id})`
  return null
}

describe('a wait for the synchronous standby that somebody cancels', () => {
  it('leaves a decision unknown, and nobody acts upon it before it is on the standby', async () => {
    const ctx = await open('primary')
    await beginDistributed(ctx, 'order-1', insert(1))
    await standbyIs('away')
    const operator = cancelWaits()
    await expect(commitDistributed(ctx, 'order-1')).rejects.toSatisfy(isUnknown)
    // It is recorded here, and yet no reason to commit.
    const [row] = await watcher!.primary.sql<{ decision: string }[]>`
      select decision from holdfast.distributed_transactions where name = 'order-1'`
    expect(row?.decision).toBe('commit')
    await expect(commitDistributed(ctx, 'order-1')).rejects.toSatisfy(isUnknown)
    const recovered = await recover(ctx).catch((error: unknown) => error)
    expect(isUnknown(recovered) || (recovered as RecoveryReport).committed === 0).toBe(true)
    expect(await preparedGids(ctx)).toHaveLength(1)
    expect(await operator.stop()).toBeGreaterThan(2)

    await standbyIs('not needed')
    expect(await commitDistributed(ctx, 'order-1')).toEqual({ state: 'committed', finished: 1, of: 1 })
    expect(await countOrders(ctx.databases.primary)).toBe(1)
  })

  it('leaves a commit unfinished until it is on the standby', async () => {
    const ctx = await open('billing')
    await beginDistributed(ctx, 'order-2', { primary: insert(2), billing: insert(2) })
    await standbyIs('away')
    const operator = cancelWaits()
    expect(await commitDistributed(ctx, 'order-2')).toEqual({ state: 'committing', finished: 1, of: 2 })
    // Committed there, as its marker says, and not counted.
    expect(await countOrders(ctx.databases.get('billing'))).toBe(1)
    expect((await recover(ctx)).left).toBe(1)
    expect(await statusOf(ctx, 'order-2')).toBe('committing')
    expect(await operator.stop()).toBeGreaterThan(1)

    await standbyIs('not needed')
    expect((await recover(ctx)).committed).toBe(1)
    expect(await statusOf(ctx, 'order-2')).toBe('committed')
  })

  it('does not count as a commit of effect-free work either', async () => {
    const ctx = await open('primary')
    await standbyIs('away')
    const operator = cancelWaits()
    const attempt = newAttempt(ctx.lease.id)
    const spec = { installation: ctx.installation, attempt, name: 'chunk-1' }
    await expect(stageForward(ctx.databases.primary, spec, insert(3))).rejects.toSatisfy(isUnknown)
    expect(await operator.stop()).toBeGreaterThan(0)

    await standbyIs('not needed')
    await recover(ctx)
    expect(await preparedGids(ctx)).toEqual([])
    expect(await countOrders(ctx.databases.primary)).toBeLessThan(2)
  })

  it('is no prepared work: it is rolled back', async () => {
    const ctx = await open('billing')
    await standbyIs('away')
    const operator = cancelWaits()
    const begun = beginDistributed(ctx, 'order-4', { primary: insert(4), billing: insert(4) })
    await expect(begun).rejects.toSatisfy(isUnknown)
    await operator.stop()
    await standbyIs('not needed')
    await recover(ctx)
    expect(await statusOf(ctx, 'order-4')).toBe('rolled_back')
    expect(await preparedGids(ctx)).toEqual([])
    expect(await countOrders(ctx.databases.get('billing'))).toBe(0)
  })
})
