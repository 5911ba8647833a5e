import assert from 'node:assert/strict'
import type { Step } from '../../src/db/steps.ts'
import type { Tx } from '../../src/db/tx.ts'
import { beginDistributed } from '../../src/jobs/begin.ts'
import { cleanStaleTransactions } from '../../src/jobs/clean-stale-transactions.ts'
import { compensate, dueCompensations } from '../../src/jobs/compensate.ts'
import type { JobContext } from '../../src/jobs/context.ts'
import { move } from '../../src/jobs/move.ts'
import { recover } from '../../src/jobs/recovery.ts'
import { type RunSpec, runDistributed } from '../../src/jobs/run-distributed.ts'
import type { Scenario } from './scenarios.ts'

/** Scenarios of runDistributed, of recovery and of the clean-up. The outside world is a table written on its own. */
const name = 'order_1'
const retention = { transactionsMs: 86_400_000, eventsMs: 86_400_000 }
const signal = new AbortController().signal

async function createTables({ databases }: JobContext): Promise<void> {
  for (const participant of databases.all) await participant.sql`create table orders (id int)`
  await databases.primary
    .sql`create table ledger (key text primary key, charged int not null default 0, undone int not null default 0)`
}

function workOn(ctx: JobContext): Record<string, (tx: Tx) => Promise<string>> {
  return Object.fromEntries(
    ctx.databases.names.map((participant) => [
      participant,
      async (tx: Tx) => {
        await tx`insert into orders values (1)`
        return participant
      },
    ]),
  )
}

/** A payment service that knows idempotency keys: charges a key once, takes it back once. */
function specOf(ctx: JobContext, fails: boolean): RunSpec<unknown, unknown> {
  const { sql } = ctx.databases.primary
  return {
    operation: 'order',
    stage: workOn(ctx),
    effects: async ({ idempotencyKey }) => {
      await sql`insert into ledger (key, charged) values (${idempotencyKey}, 1) on conflict do nothing`
      if (fails) throw new Error('card refused')
      return 'charged'
    },
    compensate: async ({ attempt }) => {
      await sql`
        insert into ledger (key, undone) values (${attempt}, 1) on conflict (key) do update set undone = 1`
    },
  }
}

async function compensateAll(ctx: JobContext): Promise<void> {
  for (const { attempt } of await dueCompensations(ctx)) await compensate(ctx, attempt, signal)
}

async function check(ctx: JobContext, kept: 0 | 1, status: string): Promise<void> {
  for (const participant of ctx.databases.all) {
    assert.equal((await participant.sql`select 1 from orders`).length, kept, participant.name)
  }
  const [row] = await ctx.databases.primary.sql<{ status: string; quarantine: string | null }[]>`
    select status, quarantine from holdfast.distributed_transactions order by created_at desc limit 1`
  assert.deepEqual({ ...row }, { status, quarantine: null })
  // Charged and kept exactly where the transaction committed; everything else charged was taken back.
  const standing = await ctx.databases.primary.sql<{ attempt: string }[]>`
    select replace(t.attempt::text, '-', '') as attempt from ledger l
    join holdfast.distributed_transactions t on replace(t.attempt::text, '-', '') = l.key
    where charged = 1 and undone = 0`
  const committed = await ctx.databases.primary.sql<{ attempt: string }[]>`
    select replace(attempt::text, '-', '') as attempt from holdfast.distributed_transactions
    where status = 'committed' and compensates`
  assert.deepEqual(standing.map((r) => r.attempt).toSorted(), committed.map((r) => r.attempt).toSorted())
}

/** Stage, effects, commit; called again with the same name by whoever comes next. */
export const run: Scenario = {
  arrange: createTables,
  act: async (ctx) => {
    await runDistributed(ctx, name, specOf(ctx, false))
  },
  finish: async (ctx) => {
    assert.equal((await runDistributed(ctx, name, specOf(ctx, false))).result, 'charged')
    await compensateAll(ctx)
  },
  check: (ctx) => check(ctx, 1, 'committed'),
}

/** The effects fail: rolled back, compensated. */
export const runThatFails: Scenario = {
  arrange: createTables,
  act: async (ctx) => {
    await runDistributed(ctx, name, specOf(ctx, true)).catch(() => undefined)
  },
  finish: async (ctx) => {
    // What the crash left pending fails again; either way the compensation is found in the row.
    await runDistributed(ctx, name, specOf(ctx, true)).catch(() => undefined)
    await compensateAll(ctx)
  },
  check: (ctx) => check(ctx, 0, 'rolled_back'),
}

/** A second process takes over what the first left pending. */
export const takingOver: Scenario = {
  arrange: async (ctx) => {
    await createTables(ctx)
    const spec = specOf(ctx, false)
    // As a crash in the effects leaves it: pending, owned by a process whose lease is over.
    await beginDistributed(ctx, name, spec.stage, { operation: 'order' })
    await ctx.databases.primary.sql`
      update holdfast.distributed_transactions set resumable = true, compensates = true`
  },
  act: async (ctx) => {
    await runDistributed(ctx, name, specOf(ctx, false))
  },
  finish: run.finish,
  check: run.check,
}

/** Recovery of what is past its deadline. */
export const recovering: Scenario = {
  arrange: async (ctx) => {
    await createTables(ctx)
    await beginDistributed(ctx, name, workOn(ctx))
    await ctx.databases.primary.sql`
      update holdfast.distributed_transactions set deadline = clock_timestamp() - interval '1 second'`
  },
  act: async (ctx) => {
    await recover(ctx)
  },
  finish: async () => undefined,
  check: (ctx) => check(ctx, 0, 'cleaned_up'),
}

/** Recovery of what was decided and not finished. */
export const recoveringDecided: Scenario = {
  arrange: async (ctx) => {
    await createTables(ctx)
    const { attempt } = await beginDistributed(ctx, name, workOn(ctx))
    await move(ctx, attempt, 'decide-commit', { decision: 'commit' })
  },
  act: recovering.act,
  finish: async () => undefined,
  check: (ctx) => check(ctx, 1, 'committed'),
}

/** The hourly clean-up, with its bookkeeping. */
export const cleaningUp: Scenario = {
  arrange: recovering.arrange,
  act: async (ctx) => {
    await cleanStaleTransactions(ctx, retention, signal)
  },
  finish: async (ctx) => {
    await cleanStaleTransactions(ctx, retention, signal)
  },
  check: async (ctx, killedAt: Step) => {
    await check(ctx, 0, 'cleaned_up')
    const runs = await ctx.databases.primary
      .sql`select 1 from holdfast.job_runs where job = 'clean-stale-transactions'`
    const booked = killedAt === 'chunk.prepared' || killedAt === 'chunk.committed' ? 2 : 1
    assert.equal(runs.length, booked)
  },
}
