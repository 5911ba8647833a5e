import assert from 'node:assert/strict'
import type { Tx } from '../../src/db/tx.ts'
import { beginDistributed } from '../../src/jobs/begin.ts'
import { compensate, dueCompensations } from '../../src/jobs/compensate.ts'
import type { JobContext } from '../../src/jobs/context.ts'
import { enqueueJob } from '../../src/jobs/enqueue-job.ts'
import { cancelJob } from '../../src/jobs/job-control.ts'
import { defineJob, type JobDefinition } from '../../src/jobs/job-definition.ts'
import { registerJob } from '../../src/jobs/run-job.ts'
import { runJobToItsEnd } from './run-job-to-its-end.ts'
import type { Scenario } from './scenarios.ts'

/**
 * Scenarios of users' jobs. The outside world is a payment service that knows idempotency keys, a table that is written on
 * its own: it charges a key once and takes it back once. It also notes when two are at it at once.
 */
const signal = new AbortController().signal

type Kind = 'succeeds' | 'fails' | 'cancels'

function definitionOf(ctx: JobContext, kind: Kind): JobDefinition {
  const { sql } = ctx.databases.primary
  return defineJob({
    name: 'place-order',
    participants: ctx.databases.names,
    retry: { attempts: 2, backoffMs: 1, maxBackoffMs: 2 },
    async stage({ txs, jobId }) {
      for (const tx of Object.values<Tx>(txs)) await tx`insert into orders values (1)`
      return { order: jobId }
    },
    async effects({ staged, jobId, idempotencyKey }) {
      assert.equal(staged.order, jobId)
      await sql`insert into ledger (key, charged) values (${idempotencyKey}, 1) on conflict do nothing`
      if (kind === 'fails') throw new Error('card refused')
      if (kind === 'cancels') await cancelJob(ctx, jobId)
      return 'charged'
    },
    async compensate({ staged, jobId, effectsKey }) {
      assert.equal(staged.order, jobId)
      await sql`insert into ledger (key, undone) values (${effectsKey}, 1) on conflict (key) do update set undone = 1`
    },
  })
}

async function arrange(ctx: JobContext, kind: Kind): Promise<string> {
  for (const { sql } of ctx.databases.all) await sql`create table orders (id int)`
  await ctx.databases.primary
    .sql`create table ledger (key text primary key, charged int not null default 0, undone int not null default 0)`
  return (await enqueueJob(ctx, definitionOf(ctx, kind), null)).jobId
}

/** Runs the one job that there is. */
async function runToItsEnd(ctx: JobContext, kind: Kind): Promise<void> {
  const [row] = await ctx.databases.primary.sql<{ id: string }[]>`select id from holdfast.jobs`
  await runJobToItsEnd(ctx, definitionOf(ctx, kind), row?.id ?? '')
}

async function finish(ctx: JobContext, kind: Kind): Promise<void> {
  await runToItsEnd(ctx, kind)
  for (const { attempt } of await dueCompensations(ctx)) await compensate(ctx, attempt, signal)
}

const ends = {
  succeeds: { status: 'completed', result: 'charged', failures: 0, kept: 1 },
  fails: { status: 'failed', result: null, failures: 2, kept: 0 },
  cancels: { status: 'cancelled', result: null, failures: 0, kept: 0 },
} as const

/** Row, databases and payment service agree: charged and kept exactly where it committed, and all else was taken back. */
async function check(ctx: JobContext, kind: Kind): Promise<void> {
  const { sql } = ctx.databases.primary
  const { kept, ...expected } = ends[kind]
  const jobs = await sql`select status, result, jsonb_array_length(errors) as failures from holdfast.jobs`
  assert.deepEqual(
    jobs.map((row) => ({ ...row })),
    [expected],
  )
  for (const participant of ctx.databases.all)
    assert.equal((await participant.sql`select 1 from orders`).length, kept, participant.name)
  const standing = await sql`select key from ledger where charged = 1 and undone = 0`
  const committed = await sql`
    select replace(attempt::text, '-', '') as key from holdfast.distributed_transactions where status = 'committed'`
  assert.equal(committed.length, kept)
  assert.deepEqual(
    standing.map((row) => ({ ...row })),
    committed.map((row) => ({ ...row })),
  )
  const unsettled = await sql`
    select 1 from holdfast.distributed_transactions
    where quarantine is not null or compensation not in ('none', 'done')
      or status not in ('committed', 'rolled_back', 'cleaned_up')`
  assert.equal(unsettled.length, 0)
}

function jobThat(kind: Kind): Scenario {
  return {
    arrange: async (ctx) => {
      await arrange(ctx, kind)
    },
    act: (ctx) => runToItsEnd(ctx, kind),
    finish: (ctx) => finish(ctx, kind),
    check: (ctx) => check(ctx, kind),
  }
}

export const job = jobThat('succeeds')
export const jobThatFails = jobThat('fails')
export const jobCancelled = jobThat('cancels')

/** A worker died in the effects: another one takes the job over, and dies as well. */
export const jobTakingOver: Scenario = {
  ...job,
  arrange: async (ctx) => {
    const jobId = await arrange(ctx, 'succeeds')
    const definition = definitionOf(ctx, 'succeeds')
    registerJob(ctx, definition)
    const work = Object.fromEntries(
      ctx.databases.names.map((name) => [
        name,
        async (tx: Tx) => {
          await tx`insert into orders values (1)`
          return name === 'primary' ? { order: jobId } : undefined
        },
      ]),
    )
    await beginDistributed(ctx, `job:${jobId}`, work, { operation: `job:${definition.name}` })
    const { sql } = ctx.databases.primary
    await sql`update holdfast.distributed_transactions set resumable = true`
    await sql`insert into ledger (key, charged) select replace(attempt::text, '-', ''), 1 from holdfast.distributed_transactions`
    await sql`update holdfast.jobs set status = 'running', owner = '0000000000000000', run = 1`
  },
}
