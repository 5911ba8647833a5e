import type { BatchJob } from '../db/batch-jobs.ts'
import type { Participant } from '../db/databases.ts'
import { findByName, listUnfinished } from '../db/distributed-transactions.ts'
import { UnknownOutcomeError } from '../db/errors.ts'
import { committedForwardAttempt } from '../db/markers.ts'
import { appendEvents } from '../db/outbox.ts'
import { resolveForward, stageForward } from '../db/staged-transaction.ts'
import { newAttempt } from '../db/transaction-name.ts'
import type { BatchDefinition, HookContext } from './batch-definition.ts'
import { beginDistributed } from './begin.ts'
import type { JobContext } from './context.ts'
import { commitDistributed, rollbackDistributed } from './coordinator.ts'
import type { Source } from './source.ts'
import { type TxsWithPrimary, together } from './stage-together.ts'

/**
 * The staged transactions of a batch job: chunks, hooks, rows that are tried again.
 *
 * On the primary database alone nothing has to agree: PREPARE and COMMIT PREPARED leave together, and what is in doubt is
 * committed forward. With other databases a step is a distributed transaction of its own, whose decision to commit is
 * recorded as soon as all are prepared. One that is found pending has all its work done, and is committed forward too;
 * one whose run died before that is rolled back.
 */
export type BatchWork = {
  ctx: JobContext
  definition: BatchDefinition
  source: Source<object>
  job: BatchJob
  params: unknown
  signal: AbortSignal
}

export type BatchTxs = TxsWithPrimary

/** Sends a query of the step on `primary` without waiting for it; when it fails, the step does. */
type Send = (query: PromiseLike<unknown>) => void

type Stage<T> = (txs: BatchTxs, send: Send, attempt: string) => Promise<T>

/** The databases that a job's steps take part in; `primary` has its position. */
export function participantsOf({ definition, source }: Pick<BatchWork, 'definition' | 'source'>): string[] {
  return [...new Set(['primary', ...(definition.participants ?? []), source.database ?? 'primary'])]
}

/** One staged transaction of the job, within the budget of slots. */
export async function stageStep<T>(work: BatchWork, name: string, stage: Stage<T>): Promise<T> {
  const participants = participantsOf(work)
  return participants.length === 1
    ? stageOnPrimary(work.ctx, name, stage)
    : stageOnSeveral(work, name, participants, stage)
}

async function stageOnPrimary<T>(ctx: JobContext, name: string, stage: Stage<T>): Promise<T> {
  const attempt = newAttempt(ctx.lease.id)
  const spec = { installation: ctx.installation, attempt, name }
  const result = await ctx.lease.slots.use(() =>
    stageForward(ctx.databases.primary, spec, (tx, send) => stage({ primary: tx }, send, attempt)),
  )
  ctx.outboxWakeup.committedOneOfMany()
  return result
}

async function stageOnSeveral<T>(
  { ctx, definition }: BatchWork,
  name: string,
  participants: readonly string[],
  stage: Stage<T>,
): Promise<T> {
  const { work, result } = together(participants, async (txs) => {
    const sent: PromiseLike<unknown>[] = []
    const value = await stage(txs, (query) => sent.push(query), newAttempt(ctx.lease.id))
    await Promise.all(sent)
    return value
  })
  await beginDistributed(ctx, name, work, { metadata: { batch: definition.name } })
  const { state } = await commitDistributed(ctx, name)
  if (state !== 'committed')
    throw new UnknownOutcomeError(`${name} is decided, and not committed on all databases yet`)
  return result()
}

/** Where the source is. */
export function sourceDatabase({ ctx, source }: Pick<BatchWork, 'ctx' | 'source'>): Participant {
  return ctx.databases.get(source.database ?? 'primary')
}

/** Brings what is in doubt of the steps whose names start so to its end; returns the names of those that committed. */
export async function resolveSteps(work: BatchWork, prefix: string): Promise<string[]> {
  const { ctx } = work
  const { primary } = ctx.databases
  const forward = await resolveForward(primary, ctx.installation, (name) => name.startsWith(prefix))
  return [
    ...forward.map(({ name }) => name),
    ...(participantsOf(work).length > 1 ? await resolveDistributed(ctx, prefix) : []),
  ]
}

async function resolveDistributed(ctx: JobContext, prefix: string): Promise<string[]> {
  const committed: string[] = []
  for (const { name, status, ownerAlive } of await listUnfinished(ctx.databases.primary.sql)) {
    if (!name.startsWith(prefix)) continue
    if (status === 'pending' || status === 'committing') {
      await commitDistributed(ctx, name)
      committed.push(name)
    } else if (status === 'rolling_back' || !ownerAlive) await rollbackDistributed(ctx, name, 'its run died')
  }
  return committed
}

/** Whether a step that happens once has happened. */
export async function isCommitted(work: BatchWork, name: string): Promise<boolean> {
  const { primary } = work.ctx.databases
  if (participantsOf(work).length === 1) return (await committedForwardAttempt(primary, name)) !== undefined
  return (await findByName(primary.sql, name))?.status === 'committed'
}

export function hookContext(
  { ctx, job, params, signal }: Omit<BatchWork, 'job'> & { job: { id: string } },
  txs: BatchTxs,
  step: string,
): HookContext<unknown> {
  const tx = txs.primary
  return {
    tx,
    txs,
    params,
    jobId: job.id,
    publish: (events) => appendEvents(tx, events, ctx.eventLimit),
    signal,
    log: ctx.log.child({ jobId: job.id, step }),
  }
}
