import { describe, expect, it } from 'vitest'
import { stageForward } from '../../src/db/staged-transaction.ts'
import { newAttempt } from '../../src/db/transaction-name.ts'
import { beginDistributed } from '../../src/jobs/begin.ts'
import { cleanStaleTransactions } from '../../src/jobs/clean-stale-transactions.ts'
import type { JobContext } from '../../src/jobs/context.ts'
import { commitDistributed, rollbackDistributed } from '../../src/jobs/coordinator.ts'
import { newDatabases, openContext } from '../support/database.ts'
import { preparedGids } from '../support/prepared-gids.ts'

const signal = new AbortController().signal
const dayMs = 86_400_000
const retention = { transactionsMs: 30 * dayMs, eventsMs: 90 * dayMs }
const work = async () => null

async function arrange(): Promise<JobContext> {
  return openContext(await newDatabases({ billing: 'west' }))
}

async function agedBy(ctx: JobContext, days: number): Promise<void> {
  const { primary } = ctx.databases
  await primary.sql`update holdfast.distributed_transactions set updated_at = updated_at - make_interval(days => ${days})`
  await primary.sql`update holdfast.transaction_events set at = at - make_interval(days => ${days})`
  for (const { sql } of ctx.databases.all)
    await sql`update holdfast.transaction_markers set at = at - make_interval(days => ${days})`
}

async function countMarkers(ctx: JobContext): Promise<number[]> {
  return Promise.all(
    ctx.databases.all.map(async ({ sql }) => (await sql`select 1 from holdfast.transaction_markers`).length),
  )
}

describe('clean-stale-transactions', () => {
  it('rolls back what is past its deadline, marks it cleaned_up with the reason, and books its run', async () => {
    const ctx = await arrange()
    await beginDistributed(ctx, 'late', { primary: work, billing: work }, { deadlineMs: 1 })
    await beginDistributed(ctx, 'in-time', { primary: work, billing: work })
    const { sql } = ctx.databases.primary
    await sql`update holdfast.distributed_transactions set deadline = clock_timestamp() - interval '1 hour' where name = 'late'`
    expect(await cleanStaleTransactions(ctx, retention, signal)).toMatchObject({ rolledBack: 1, left: 1 })
    expect(
      await sql`select name, status, reason from holdfast.distributed_transactions order by name`,
    ).toEqual([
      { name: 'in-time', status: 'pending', reason: null },
      { name: 'late', status: 'cleaned_up', reason: 'past its deadline' },
    ])
    expect(await preparedGids(ctx)).toHaveLength(2)
    const [booked] = await sql`select job, result from holdfast.job_runs`
    expect(booked).toMatchObject({ job: 'clean-stale-transactions', result: { rolledBack: 1 } })
    // The bookkeeping was a staged transaction, with its audit row.
    expect(
      await sql`select 1 from holdfast.transaction_audit where name like 'cleanup_%' and event = 'committed'`,
    ).toHaveLength(1)
    await rollbackDistributed(ctx, 'in-time', 'test')
  })

  it('can be booked by two processes in the same microsecond', async () => {
    const { sql } = (await arrange()).databases.primary
    for (let process = 0; process < 2; process++)
      await sql`insert into holdfast.job_runs (job, at, result) values ('clean', '2026-01-01', '{}')`
    expect(await sql`select 1 from holdfast.job_runs`).toHaveLength(2)
  })

  it('sets aside what cannot be rolled back, and finishes it once it can', async () => {
    const ctx = await arrange()
    const { sql } = ctx.databases.primary
    const billing = ctx.databases.get('billing').sql
    // Before the begin: what is prepared keeps the table from being altered.
    await billing`alter table holdfast.transaction_markers add constraint refuses check (outcome <> 'aborted')`
    await beginDistributed(ctx, 'late', { primary: work, billing: work })
    await sql`update holdfast.distributed_transactions set deadline = clock_timestamp() - interval '1 hour'`
    await cleanStaleTransactions(ctx, retention, signal)
    const [row] = await sql`select status, decision, quarantine from holdfast.distributed_transactions`
    expect(row).toMatchObject({ status: 'rolling_back', decision: 'abort' })
    expect(row?.quarantine).toContain('refuses')
    await billing`alter table holdfast.transaction_markers drop constraint refuses`
    expect(await cleanStaleTransactions(ctx, retention, signal)).toMatchObject({ rolledBack: 1 })
    expect(await sql`select status, quarantine from holdfast.distributed_transactions`).toEqual([
      { status: 'cleaned_up', quarantine: null },
    ])
  })

  it('removes rows, votes, markers and audit after their retention, and nothing earlier', async () => {
    const ctx = await arrange()
    const { databases, installation, lease } = ctx
    for (const name of ['a', 'b']) {
      await beginDistributed(ctx, name, { primary: work, billing: work })
      await (name === 'a' ? commitDistributed(ctx, name) : rollbackDistributed(ctx, name, 'test'))
    }
    await beginDistributed(ctx, 'c', work, { awaits: ['email'] })
    await rollbackDistributed(ctx, 'c', 'test')
    await stageForward(
      databases.primary,
      { installation, attempt: newAttempt(lease.id), name: 'chunk' },
      work,
    )
    await agedBy(ctx, 29)
    await cleanStaleTransactions(ctx, retention, signal)
    expect(await countMarkers(ctx)).toEqual([5, 2])
    await agedBy(ctx, 2)
    expect(await cleanStaleTransactions(ctx, retention, signal)).toMatchObject({ transactions: 3 })
    const { sql } = databases.primary
    expect(await sql`select 1 from holdfast.distributed_transactions`).toEqual([])
    expect(await sql`select 1 from holdfast.transaction_votes`).toEqual([])
    // Those of effect-free work stay as long as the audit, since they are it: the chunk's and of two clean-ups.
    expect(await countMarkers(ctx)).toEqual([3, 0])
    expect(
      (await sql`select 1 from holdfast.transaction_events where name in ('a', 'b')`).length,
    ).toBeGreaterThan(0)
    await agedBy(ctx, 60)
    await cleanStaleTransactions(ctx, retention, signal)
    expect(await sql`select 1 from holdfast.transaction_events where name in ('a', 'b')`).toEqual([])
    expect(await sql`select 1 from holdfast.transaction_audit where name = 'chunk'`).toEqual([])
  })

  it('keeps what is unfinished, quarantined or to be compensated, however old, and its markers', async () => {
    const ctx = await arrange()
    await beginDistributed(ctx, 'waiting', { primary: work, billing: work })
    for (const name of ['due', 'aside']) {
      await beginDistributed(ctx, name, { primary: work, billing: work })
      await rollbackDistributed(ctx, name, 'test')
    }
    const { sql } = ctx.databases.primary
    await sql`update holdfast.distributed_transactions set compensation = 'due' where name = 'due'`
    await sql`update holdfast.distributed_transactions set quarantine = 'look' where name = 'aside'`
    await agedBy(ctx, 400)
    await cleanStaleTransactions(ctx, retention, signal)
    expect(await sql`select name from holdfast.distributed_transactions order by name`).toEqual([
      { name: 'aside' },
      { name: 'due' },
      { name: 'waiting' },
    ])
    const markers = await sql`select 1 from holdfast.transaction_markers where outcome = 'aborted'`
    expect(markers).toHaveLength(2)
    await commitDistributed(ctx, 'waiting')
  })
})
