import type { Logger } from 'pino'
import { listUnsettledCompensations } from '../db/compensations.ts'
import { findByName } from '../db/distributed-transactions.ts'
import { FencedError } from '../db/errors.ts'
import {
  type ClaimedJob,
  claimJob,
  completeJob,
  deferJob,
  failJob,
  findJob,
  isResumed,
  type Job,
  type Run,
  readRun,
  settleCancelled,
  transactionOfJob,
} from '../db/jobs.ts'
import type { Json } from '../db/json.ts'
import { messageOf } from '../db/message-of.ts'
import { appendEvents } from '../db/outbox.ts'
import { sqlstateOf } from '../db/sqlstate.ts'
import { reached } from '../db/steps.ts'
import type { Tx } from '../db/tx.ts'
import { compensate } from './compensate.ts'
import type { JobContext } from './context.ts'
import { commitDistributed } from './coordinator.ts'
import { parseInput } from './enqueue-job.ts'
import { alertFailed } from './job-alerts.ts'
import { endTransactionOf } from './job-control.ts'
import type { JobDefinition } from './job-definition.ts'
import { compensationOutstanding, jobOperation, operationOfJob } from './job-operation.ts'
import {
  classify,
  classifyEffects,
  DiedTooOften,
  followUp,
  lookAgainMs,
  maxDeferrals,
  type Verdict,
} from './retry.ts'
import { type RunResult, runDistributed } from './run-distributed.ts'
import type { RunningJobs } from './running-jobs.ts'
import { stageJob } from './stage-job.ts'
import { stagedTogether, stageTogether } from './stage-together.ts'

/**
 * Runs a user's job: a distributed transaction named `job:<id>`, and a row (table jobs) that says what is to happen next.
 * The transaction is the truth. The row is written before and after it, never within it, and follows it.
 *
 * One name for all attempts: it may be staged again only after the last attempt was proved aborted, and a committed name
 * stays taken. Hence the staged work commits at most once, whatever the row or the queue say; and whoever runs the job
 * again finds what is there: nothing → stage; pending → effects with the same key, commit; decided → finish; committed →
 * the stored result.
 *
 * The races, and what closes them:
 * 1. Delivered twice, at once. Claiming the row is a compare-and-set from `queued`, or from a run whose process's lease is
 *    over; in one process, RunningJobs. Whoever loses it steps back and has charged nothing.
 * 2. A run that was taken for dead (its lease ran out) goes on. Each claim has a number. The old run reads it before its
 *    effects and stops; its transaction was taken over, so it decides nothing (FencedError); what it writes to the row
 *    names its number and changes nothing. Effects that it is in already overlap with the new run's, under the same key.
 * 3. The new run finds that the old one's lease lives again: it steps back (NameInUseError). The old one commits, and the
 *    row, which it may not write any more, is completed by the next run, from the transaction.
 * 4. Killed between the commit and the row: the same.
 * 5. Cancelled while it runs. The cancel first marks the row, then decides abort where a transaction stands; the run first
 *    has its transaction pending, then reads the row. One of the two sees the other. Where the commit was decided before,
 *    the job completes.
 * 6. An attempt failed and is to be compensated, and the next is due. Nothing is staged while a compensation of an earlier
 *    attempt is outstanding, so a late one cannot undo what a later attempt did. One that failed for good fails the job.
 * 7. The job fails for good, or is cancelled, while a transaction of it is undecided: abort is decided first. So a job that
 *    is `failed` or `cancelled` never commits.
 * 8. The deadline passes while nobody runs it: recovery leaves what is pending to the next run, which extends it. While
 *    somebody runs it: recovery aborts it, and the run's commit loses.
 * 9. Retention removes a committed name: not while its job does not know that it has committed.
 */
export type JobOutcome = 'completed' | 'failed' | 'cancelled' | 'queued' | 'not-ours'

export type JobRunner = {
  ctx: JobContext
  definitions: ReadonlyMap<string, JobDefinition>
  running: RunningJobs
}

/** What a crash must be able to find again about the jobs of a definition. */
export function registerJob(ctx: JobContext, definition: JobDefinition): void {
  const { sql } = ctx.databases.primary
  const rows = { find: (id: string) => findJob(sql, id), isResumed: (name: string) => isResumed(sql, name) }
  ctx.operations.set(operationOfJob(definition.name), jobOperation(definition, rows))
}

/** `signal` aborts when the queue has lost the job or the worker stops: what the effects then throw charges no attempt. */
export async function runJob(
  runner: JobRunner,
  { id, name }: Pick<Job, 'id' | 'name'>,
  signal: AbortSignal,
): Promise<JobOutcome> {
  const { ctx, definitions, running } = runner
  const definition = definitions.get(name)
  if (!definition) return 'not-ours'
  // Before anything is awaited: of those that wait for the same room, the queue gives the first one first.
  const revoked = running.hasRoom(definition) ? running.enter(id, name) : undefined
  if (!revoked) return 'not-ours'
  try {
    await ctx.lease.hold()
    const job = await claimJob(ctx.databases.primary.sql, { id, name }, ctx.lease.id)
    if (!job) return 'not-ours'
    running.claimed(id, job.run)
    await reached('job.claimed')
    registerJob(ctx, definition)
    if (!job.abandoned) ctx.telemetry.jobs.waited(job.name, job.dueSeconds)
    const began = performance.now()
    const outcome = await new JobRun(ctx, definition, job, signal, revoked).run()
    if (outcome !== 'not-ours') {
      const end = outcome === 'queued' ? 'retried' : outcome
      ctx.telemetry.jobs.ran(job.name, end, (performance.now() - began) / 1_000)
    }
    await reached('job.ended')
    return outcome
  } finally {
    running.leave(id)
  }
}

class JobRun {
  readonly #ctx: JobContext
  readonly #definition: JobDefinition
  readonly #job: ClaimedJob
  readonly #run: Run
  readonly #name: string
  readonly #handedBack: AbortSignal
  readonly #signal: AbortSignal
  readonly #log: Logger
  /** what the effects threw */
  #effectsFailed: { error: unknown } | undefined

  constructor(
    ctx: JobContext,
    definition: JobDefinition,
    job: ClaimedJob,
    handedBack: AbortSignal,
    revoked: AbortSignal,
  ) {
    this.#ctx = ctx
    this.#definition = definition
    this.#job = job
    this.#run = { id: job.id, run: job.run, owner: ctx.lease.id }
    this.#name = transactionOfJob(job.id)
    this.#handedBack = handedBack
    this.#signal = AbortSignal.any([handedBack, revoked])
    this.#log = ctx.log.child({ job: job.name, jobId: job.id })
  }

  async run(): Promise<JobOutcome> {
    const { sql } = this.#ctx.databases.primary
    if (this.#job.status === 'cancelling') return this.#cancel()
    try {
      if (this.#job.abandoned && this.#job.deferrals > maxDeferrals)
        throw new DiedTooOften(this.#job.deferrals)
      const { state, result } = await this.#transaction()
      if (state === 'committing') return await this.#defer(lookAgainMs, false)
      await reached('job.committed')
      await completeJob(sql, this.#job.id, result as Json)
      this.#log.info({ attempts: this.#job.attempts + 1 }, 'job completed')
      return 'completed'
    } catch (error) {
      await reached('job.failing')
      return this.#ended(error)
    }
  }

  async #transaction(): Promise<RunResult<unknown, unknown>> {
    const { participants = ['primary'], timeoutMs } = this.#definition
    const input = await parseInput(this.#definition, this.#job.input)
    return runDistributed(
      this.#ctx,
      this.#name,
      {
        operation: operationOfJob(this.#definition.name),
        correlationId: this.#job.correlationId,
        signal: this.#signal,
        ...(timeoutMs === undefined ? {} : { deadlineMs: timeoutMs }),
        stage: stageTogether(participants, (txs) => this.#stage(input, txs)),
        effects: ({ attempt, staged, signal }) => this.#effects(input, attempt, staged, signal),
      },
      () => this.#settleCompensations(),
    )
  }

  #stage(input: unknown, txs: Readonly<Record<string, Tx>>): unknown {
    const context = { input, txs, jobId: this.#job.id, signal: this.#signal, log: this.#log }
    return stageJob(this.#definition, context, (primary, events) =>
      appendEvents(primary, events, this.#ctx.eventLimit),
    )
  }

  async #effects(input: unknown, attempt: string, staged: unknown, signal: AbortSignal): Promise<unknown> {
    const now = await readRun(this.#ctx.databases.primary.sql, this.#run, attempt)
    if (!now) throw new FencedError(`another process runs ${this.#job.id}, which goes on`)
    if (now.status === 'cancelling') throw new Error('the job was cancelled')
    try {
      return await this.#definition.effects?.({
        input,
        staged: stagedTogether(staged),
        // What is never taken back must not be done under another key.
        idempotencyKey: now.compensates ? attempt : this.#name,
        jobId: this.#job.id,
        signal,
        log: this.#log,
      })
    } catch (error) {
      this.#effectsFailed = { error }
      throw error
    }
  }

  /** An earlier attempt's compensation comes before the next attempt. */
  async #settleCompensations(): Promise<void> {
    const { sql } = this.#ctx.databases.primary
    for (const { attempt, operation, compensation } of await listUnsettledCompensations(sql, this.#name)) {
      if (compensation === 'due' && this.#ctx.operations.get(operation ?? '')?.compensate)
        await compensate(this.#ctx, attempt, this.#signal)
    }
    const [left] = await listUnsettledCompensations(sql, this.#name)
    if (!left) return
    throw compensationOutstanding(this.#name, left)
  }

  /** The run has ended with an error; the transaction says what that means. */
  async #ended(error: unknown): Promise<JobOutcome> {
    const { sql } = this.#ctx.databases.primary
    const row = await findByName(sql, this.#name)
    if (row?.status === 'committed') {
      await completeJob(sql, this.#job.id, row.result)
      this.#log.info({ err: error }, 'job completed, although its run failed')
      return 'completed'
    }
    if (row?.status === 'committing') return this.#defer(lookAgainMs, false)
    const now = await readRun(sql, this.#run)
    if (!now) return 'not-ours'
    if (now.status === 'cancelling') return this.#cancel()
    const verdict = this.#judge(error)
    const follow = followUp(verdict, this.#definition.retry, this.#job)
    if (follow.step === 'fail') return this.#fail(error, follow.next)
    const waitMs = this.#handedBack.aborted ? 0 : follow.waitMs
    const isPlanned = verdict.kind === 'later' || verdict.kind === 'elsewhere'
    const said = { err: error, waitMs: Math.round(waitMs) }
    if (isPlanned) this.#log.debug(said, 'job deferred')
    else this.#log.warn(said, 'job deferred; this is not its own failure')
    return this.#defer(waitMs, follow.counts)
  }

  #judge(error: unknown): Verdict {
    // Whoever stopped it is not the job.
    if (this.#handedBack.aborted) return { kind: 'passing' }
    return this.#effectsFailed?.error === error ? classifyEffects(error) : classify(error)
  }

  async #fail(error: unknown, next: { waitMs: number } | 'give-up'): Promise<JobOutcome> {
    // First the decision, then the row: what has failed for good never commits.
    const reason = `the job failed: ${messageOf(error)}`
    if (next === 'give-up' && !(await endTransactionOf(this.#ctx, this.#job.id, reason)))
      return this.#defer(lookAgainMs, false)
    const recorded = { message: messageOf(error), sqlstate: sqlstateOf(error) }
    const status = await failJob(this.#ctx.databases.primary.sql, this.#run, recorded, next)
    this.#log.warn({ err: error, attempt: this.#job.attempts + 1, status }, 'an attempt of the job failed')
    if (status === 'failed') alertFailed(this.#ctx, this.#job.name, this.#job.id)
    if (status === 'cancelling' || status === undefined) return 'not-ours'
    return status === 'failed' || status === 'cancelled' ? status : 'queued'
  }

  async #defer(waitMs: number, counts: boolean): Promise<JobOutcome> {
    await deferJob(this.#ctx.databases.primary.sql, this.#run, { waitMs, counts })
    return 'queued'
  }

  async #cancel(): Promise<JobOutcome> {
    const { sql } = this.#ctx.databases.primary
    if (!(await endTransactionOf(this.#ctx, this.#job.id, 'the job was cancelled'))) {
      const { state } = await commitDistributed(this.#ctx, this.#name)
      if (state === 'committing') return this.#defer(lookAgainMs, false)
      await completeJob(sql, this.#job.id, (await findByName(sql, this.#name))?.result ?? null)
      this.#log.info('job completed: it had committed before it was cancelled')
      return 'completed'
    }
    if (!(await settleCancelled(sql, this.#job.id, this.#run))) return this.#defer(lookAgainMs, false)
    this.#log.info('job cancelled')
    return 'cancelled'
  }
}
