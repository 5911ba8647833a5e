import { randomUUID } from 'node:crypto'
import { endRun, insertStarted, type Moved, type TransitionFields } from '../db/attempts.ts'
import { findByAttempt } from '../db/distributed-transactions.ts'
import {
  EscapedWorkError,
  FencedError,
  InvalidNameError,
  NameInUseError,
  RolledBackError,
} from '../db/errors.ts'
import { type Json, throughJson } from '../db/json.ts'
import { messageOf } from '../db/message-of.ts'
import { reached } from '../db/steps.ts'
import { checkTransactionName, newAttempt } from '../db/transaction-name.ts'
import { newVoteToken, readBallots } from '../db/votes.ts'
import { type BeginOptions, checkBeginOptions } from './begin-options.ts'
import type { JobContext } from './context.ts'
import { deciding } from './coordinator.ts'
import { decideByVotes } from './decide-by-votes.ts'
import { driveAbort, driveCommit } from './finish.ts'
import { move, moveIn, type Only, setAside } from './move.ts'
import { checkWork, stageAll, type Work, type WorkByParticipant } from './stage-work.ts'
import { traced } from './tracing.ts'

/**
 * Begin: the row `started` is durable before any PREPARE; then each participant runs its work and prepares, its marker
 * last; then the row becomes `pending`. Anything else: decision abort, rolled back and fenced, the error to the caller.
 */
export type Begun<T> = {
  name: string
  attempt: string
  /** what the work returned, as JSON carries it */
  staged: T
  /** with `awaits`: for each service the token that lets its holder vote for it; kept nowhere else */
  tokens: Record<string, string>
}

/** Who holds the attempt once it is pending: nobody (it waits for a hand or for votes), or the run that began it. */
export type Holding = 'nobody' | 'run'

const dayMs = 24 * 60 * 60 * 1000

/** Rows that wait may take half of what the servers have room for. */
const waitingShare = 0.5

export async function beginDistributed(
  ctx: JobContext,
  name: string,
  work: Work<unknown> | WorkByParticipant,
  options: BeginOptions = {},
): Promise<Begun<unknown>> {
  await ctx.lease.hold()
  return ctx.lease.slots.use(() => stage(ctx, name, work, options, 'nobody'))
}

/** Stages a name; the caller has the slot. Held by a `run`, the attempt stays among those that run here. */
export async function stage(
  ctx: JobContext,
  name: string,
  work: Work<unknown> | WorkByParticipant,
  options: BeginOptions,
  holding: Holding,
): Promise<Begun<unknown>> {
  checkTransactionName(name)
  if (name.startsWith('outbox:'))
    throw new InvalidNameError('names that start with outbox: are those of the relay')
  const byParticipant = checkWork((participant) => ctx.databases.get(participant), work)
  checkBeginOptions(ctx.databases.names, options)
  const attempt = newAttempt(ctx.lease.id)
  const traceparent = options.traceparent ?? null
  return traced('holdfast.begin', { name, attempt, traceparent }, (current) =>
    stageAttempt(ctx, { name, attempt, work, byParticipant, options, holding, traceparent: current ?? null }),
  )
}

function waitingLimit({ slotBudget: { coordinator, elsewhere } }: JobContext): number {
  return Math.ceil(Math.min(coordinator, elsewhere ?? coordinator) * waitingShare)
}

type Attempt = {
  name: string
  attempt: string
  work: Work<unknown> | WorkByParticipant
  byParticipant: WorkByParticipant
  options: BeginOptions
  holding: Holding
  traceparent: string | null
}

async function stageAttempt(ctx: JobContext, a: Attempt): Promise<Begun<unknown>> {
  const { name, attempt, byParticipant, options, holding } = a
  const participants = Object.keys(byParticipant)
  const ballots = (options.awaits ?? []).map((service) => ({ service, ...newVoteToken() }))
  const correlationId = options.correlationId ?? randomUUID()
  const metadata = options.metadata === undefined ? null : throughJson(options.metadata, 'metadata')
  ctx.lease.running.add(attempt)
  try {
    await insertStarted(ctx.databases.primary, {
      attempt,
      name,
      operation: options.operation ?? null,
      participants,
      owner: ctx.lease.id,
      resumable: holding === 'run',
      deadlineMs: options.deadlineMs ?? dayMs,
      correlationId,
      traceparent: a.traceparent,
      metadata,
      finishers: options.finishers ?? null,
      compensates: ctx.operations.get(options.operation ?? '')?.compensate !== undefined,
      awaits: ballots,
      waitingLimit: holding === 'run' ? undefined : waitingLimit(ctx),
    })
    ctx.telemetry.started(name, attempt, correlationId)
    await reached('begin.recorded')
    const results = await stageAll(ctx, name, attempt, byParticipant)
    await reached('begin.prepared-all')
    const staged = throughJson(
      (typeof a.work === 'function' ? results.primary : results) ?? null,
      'what the work returned',
    )
    await becomePending(ctx, name, attempt, staged, holding, ballots.length > 0)
    await reached('begin.pending')
    return {
      name,
      attempt,
      staged,
      tokens: Object.fromEntries(ballots.map(({ service, token }) => [service, token])),
    }
  } catch (error) {
    // Nothing was recorded where the name is in use; and after any other error the row may be there.
    if (!(error instanceof NameInUseError)) await abortStaging(ctx, { attempt, name, participants }, error)
    throw error
  } finally {
    if (holding === 'nobody') ctx.lease.running.delete(attempt)
  }
}

/** The step to `pending`, together with what votes that came early make of it. */
async function becomePending(
  ctx: JobContext,
  name: string,
  attempt: string,
  staged: Json,
  holding: Holding,
  awaitsVotes: boolean,
): Promise<void> {
  const fields = { staged, ...(holding === 'nobody' ? { owner: null } : {}) }
  const mine = { owner: ctx.lease.id }
  const step = awaitsVotes
    ? pendingWithVotes(ctx, attempt, fields, mine)
    : move(ctx, attempt, 'all-prepared', fields, mine)
  if ((await deciding(name, step)) !== undefined) return
  const row = await findByAttempt(ctx.databases.primary.sql, attempt)
  if (row?.decision === 'commit') {
    await driveCommit(ctx, row)
    return
  }
  if (row?.decision !== 'abort') throw new FencedError(`${name} was taken over by another process`)
  throw new RolledBackError(
    `${name} was rolled back while it was being staged: ${row?.reason ?? 'no reason recorded'}. It may be begun again`,
  )
}

/** Undefined also where the votes have decided. */
async function pendingWithVotes(
  ctx: JobContext,
  attempt: string,
  fields: TransitionFields,
  mine: Only,
): Promise<Moved | undefined> {
  const step = await ctx.databases.primary.transaction(async (tx) => {
    const pending = await moveIn(ctx, tx, attempt, 'all-prepared', fields, mine)
    if (!pending) return undefined
    // The step has locked the row, so a vote came before it and is seen here, or comes after it and decides by itself.
    return { pending, decided: await decideByVotes(ctx, tx, attempt, await readBallots(tx, attempt)) }
  })
  step?.pending.report()
  step?.decided?.report()
  return step?.decided ? undefined : step?.pending.moved
}

/**
 * Decides abort and rolls back. What cannot be reached now is tried again in the background while this process lives, and
 * by recovery: the attempt is not among those that run, so its owner's lease does not protect it here.
 */
async function abortStaging(
  ctx: JobContext,
  row: { attempt: string; name: string; participants: string[] },
  cause: unknown,
): Promise<void> {
  ctx.lease.running.delete(row.attempt)
  const once = async () => {
    const { primary } = ctx.databases
    const fields = { decision: 'abort', abortCause: 'failed', reason: messageOf(cause) } as const
    await move(ctx, row.attempt, 'decide-abort', fields, { owner: ctx.lease.id })
    await reached('rollback.decided')
    const now = await findByAttempt(primary.sql, row.attempt)
    // No row: it was not on disk yet when the server crashed, and no recovery takes a living process's gid for an orphan.
    if (now === undefined) await driveAbort(ctx, { ...row, abortCause: 'failed' })
    if (now?.decision === 'abort') await driveAbort(ctx, now)
    await endRun(primary, row.attempt, ctx.lease.id, false)
    if (cause instanceof EscapedWorkError) await setAside(ctx, row.attempt, cause.message)
  }
  try {
    await once()
  } catch (error) {
    ctx.log.warn({ err: error, name: row.name, attempt: row.attempt }, 'not rolled back yet; trying again')
    ctx.lease.retry(once)
  }
}
