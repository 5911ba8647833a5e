import { endRun, takeOver } from '../db/attempts.ts'
import { type DistributedTransaction, findByAttempt, findByName } from '../db/distributed-transactions.ts'
import {
  FencedError,
  InvalidConfigError,
  NameInUseError,
  RolledBackError,
  UnknownOutcomeError,
} from '../db/errors.ts'
import { type Json, throughJson } from '../db/json.ts'
import { messageOf } from '../db/message-of.ts'
import { reached } from '../db/steps.ts'
import { checkTransactionName } from '../db/transaction-name.ts'
import { stage } from './begin.ts'
import type { BeginOptions } from './begin-options.ts'
import { compensate } from './compensate.ts'
import type { JobContext } from './context.ts'
import { decide } from './coordinator.ts'
import { driveAbort, driveCommit, driveOwnCommit } from './finish.ts'
import type { CompensationContext } from './operations.ts'
import { longestTimerMs } from './pause.ts'
import type { Work, WorkByParticipant } from './stage-work.ts'
import { traced } from './tracing.ts'

/**
 * A whole distributed transaction in one call: stage, effects, commit; or roll back and compensate.
 *
 * The name is the work's identity. Called again with it (after a crash, or when a queue delivers twice) the call finds
 * what is there: nothing → stage; `started` by a run that is gone → abort, stage anew; `pending` → effects again with
 * the same idempotency key, commit; decided → finish; committed → the stored result. While another run lives it steps
 * back (NameInUseError).
 *
 * The races, and what closes them:
 * 1. Two resume the same attempt: taking over is a compare-and-set on the owner whose lease ran out.
 * 2. The deadline passes during effects: the signal aborts a margin before. When the effects end nevertheless, commit
 *    loses its compare-and-set, and the end of the run makes the compensation due again: what it did may have come after
 *    an earlier one.
 * 3. A run that lost its lease and was taken over (zombie) decides nothing any more: its steps are for the owner alone.
 * 4. Aborted while effects run elsewhere: compensation waits until the run has ended or its lease is over.
 */
export type EffectsContext<T> = {
  name: string
  attempt: string
  staged: T
  /** the same each time effects run for this attempt; give it to the services that you call */
  idempotencyKey: string
  /** aborts shortly before the deadline, and when this process lost its lease */
  signal: AbortSignal
}

export type RunSpec<T, R> = Omit<BeginOptions, 'awaits'> & {
  stage: Work<T> | WorkByParticipant
  /** outside the databases, between PREPARE and COMMIT; may run twice */
  effects?: (context: EffectsContext<T>) => Promise<R> | R
  /** as in the config's `operations`; needs `operation`, by which another process finds its own after a crash */
  compensate?: (context: CompensationContext) => Promise<void> | void
  /** default 10 minutes */
  deadlineMs?: number
  /** the same as deadlineMs */
  timeoutMs?: number
  /** aborts the effects' signal */
  signal?: AbortSignal
}

export type RunResult<T, R> = {
  state: 'committed' | 'committing'
  name: string
  attempt: string
  staged: T
  /** what effects returned, as JSON carries it */
  result: R
}

const defaultDeadlineMs = 10 * 60 * 1000
const maxMarginMs = 5_000

type Spec = RunSpec<unknown, unknown>
type Result = RunResult<unknown, unknown>

/** `beforeStaging`: may throw; nothing is staged then. */
export async function runDistributed(
  ctx: JobContext,
  name: string,
  spec: Spec,
  beforeStaging?: () => Promise<void>,
): Promise<Result> {
  checkTransactionName(name)
  register(ctx, spec)
  const deadlineMs = spec.deadlineMs ?? spec.timeoutMs ?? defaultDeadlineMs
  await ctx.lease.hold()
  const release = await ctx.lease.slots.take()
  try {
    for (;;) {
      const row = await findByName(ctx.databases.primary.sql, name)
      const next = row && row.status !== 'rolled_back' && row.status !== 'cleaned_up' ? row : undefined
      if (next === undefined) {
        await beforeStaging?.()
        return await runNew(ctx, name, spec, deadlineMs)
      }
      const resumed = await resume(ctx, next, spec, deadlineMs)
      if (resumed !== 'stage-again') return resumed
    }
  } finally {
    release()
  }
}

function register(ctx: JobContext, { operation, compensate: undo }: Spec): void {
  if (undo === undefined) return
  if (operation === undefined) {
    throw new InvalidConfigError([
      'compensate needs `operation`: by that name another process finds the compensation after a crash (`operations` in the config)',
    ])
  }
  if (!ctx.operations.has(operation)) ctx.operations.set(operation, { compensate: undo })
}

async function runNew(ctx: JobContext, name: string, spec: Spec, deadlineMs: number): Promise<Result> {
  const { stage: work, effects: _e, compensate: _c, timeoutMs: _t, signal: _s, ...options } = spec
  const until = performance.now() + deadlineMs
  const begun = await stage(ctx, name, work, { ...options, deadlineMs }, 'run')
  return runPending(ctx, begun, spec, until, deadlineMs)
}

async function resume(
  ctx: JobContext,
  row: DistributedTransaction,
  spec: Spec,
  deadlineMs: number,
): Promise<Result | 'stage-again'> {
  if (row.status === 'committed' || row.status === 'committing') {
    const state = row.status === 'committed' ? row.status : (await driveCommit(ctx, row)).state
    return { state, name: row.name, attempt: row.attempt, staged: row.staged, result: row.result }
  }
  if (row.status === 'rolling_back') {
    if ((await driveAbort(ctx, row)).state === 'rolled_back') return 'stage-again'
    throw new UnknownOutcomeError(
      `an earlier attempt of ${row.name} is being rolled back, but not everywhere yet; call again`,
    )
  }
  const until = performance.now() + deadlineMs
  if (!row.resumable) {
    throw new NameInUseError(
      `${row.name} was begun by beginDistributed and is ${row.status}; finish it, or use another name`,
    )
  }
  const mine = ctx.lease.running.has(row.attempt)
  if (mine || !(await takeOver(ctx.databases.primary, row, ctx.lease.id, deadlineMs))) {
    throw new NameInUseError(`${row.name} is being run by another process or call; wait until it has ended`)
  }
  await reached('run.taken-over')
  if (row.status === 'pending') {
    ctx.lease.running.add(row.attempt)
    return runPending(ctx, row, spec, until, deadlineMs)
  }
  const fields = {
    decision: 'abort',
    abortCause: 'abandoned',
    reason: 'its process ended while staging',
  } as const
  await decide(ctx, row, 'decide-abort', fields)
  const now = await findByAttempt(ctx.databases.primary.sql, row.attempt)
  try {
    return now ? await resume(ctx, now, spec, deadlineMs) : 'stage-again'
  } finally {
    await endRun(ctx.databases.primary, row.attempt, ctx.lease.id, false)
  }
}

type Pending = { name: string; attempt: string; staged: unknown }

async function runPending(
  ctx: JobContext,
  pending: Pending,
  spec: Spec,
  until: number,
  deadlineMs: number,
): Promise<Result> {
  const { name, attempt, staged } = pending
  const limit = new Limit(ctx, until - Math.min(maxMarginMs, deadlineMs / 10) - performance.now())
  let ran = false
  let committed = false
  try {
    let result: Json
    try {
      await reached('run.effects')
      ran = true
      const signal = spec.signal ? AbortSignal.any([limit.signal, spec.signal]) : limit.signal
      const context = { name, attempt, staged, idempotencyKey: attempt, signal }
      const returned = await traced('holdfast.effects', pending, async () => spec.effects?.(context))
      result = throughJson(returned ?? null, 'what the effects returned')
    } catch (error) {
      await rollBack(ctx, pending, error)
      throw error
    }
    await reached('run.effects-done')
    const fields = { decision: 'commit', result } as const
    const own = await decide(ctx, pending, 'decide-commit', fields, { owner: ctx.lease.id })
    await reached('commit.decided')
    const { state } = own
      ? await driveOwnCommit(ctx, { ...own, attempt })
      : await commitOfAnother(ctx, pending)
    committed = state === 'committed'
    return { state, name, attempt, staged, result }
  } finally {
    limit.end()
    ctx.lease.running.delete(attempt)
    // The last step of a commit has let go of the row already.
    if (!committed) await endAndCompensate(ctx, pending, ran)
  }
}

/** After a decision that somebody else took first. */
async function commitOfAnother(ctx: JobContext, { name, attempt }: Pending): Promise<Pick<Result, 'state'>> {
  const row = await findByAttempt(ctx.databases.primary.sql, attempt)
  if (row?.decision === null)
    throw new FencedError(`${name} was taken over by another process, which goes on`)
  if (row?.decision !== 'commit') {
    throw new RolledBackError(
      `${name} was rolled back while its effects ran: ${row?.reason ?? 'no reason recorded'}`,
    )
  }
  return row.status === 'committed' ? { state: row.status } : driveCommit(ctx, row)
}

async function rollBack(ctx: JobContext, { name, attempt }: Pending, cause: unknown): Promise<void> {
  try {
    const fields = { decision: 'abort', abortCause: 'failed', reason: messageOf(cause) } as const
    await decide(ctx, { name, attempt }, 'decide-abort', fields, { owner: ctx.lease.id })
    await reached('rollback.decided')
    const row = await findByAttempt(ctx.databases.primary.sql, attempt)
    if (row?.status === 'rolling_back') await driveAbort(ctx, row)
  } catch (error) {
    ctx.log.warn({ err: error, name, attempt }, 'not rolled back yet; recovery does it')
  }
}

/** The run is over; what has to be compensated is tried once here, and otherwise done by the workers. */
async function endAndCompensate(
  ctx: JobContext,
  { name, attempt }: Pending,
  effectsRan: boolean,
): Promise<void> {
  try {
    await endRun(ctx.databases.primary, attempt, ctx.lease.id, effectsRan)
    const row = await findByAttempt(ctx.databases.primary.sql, attempt)
    if (row?.compensation === 'due') await compensate(ctx, attempt, new AbortController().signal)
  } catch (error) {
    ctx.log.warn({ err: error, name, attempt }, 'the end of the run was not recorded; recovery finds it')
  }
}

/** Aborts effects before the deadline, or when the lease is lost. */
class Limit {
  readonly #controller = new AbortController()
  readonly #timer: NodeJS.Timeout
  readonly #unsubscribe: () => void

  constructor(ctx: JobContext, ms: number) {
    this.#timer = setTimeout(
      () => this.#controller.abort(new Error('the deadline is near')),
      Math.min(Math.max(0, ms), longestTimerMs),
    )
    this.#unsubscribe = ctx.lease.onLost(() => this.#controller.abort(new Error('the lease was lost')))
  }

  get signal(): AbortSignal {
    return this.#controller.signal
  }

  end(): void {
    clearTimeout(this.#timer)
    this.#unsubscribe()
  }
}
