import type { StandardSchemaV1 } from '@standard-schema/spec'
import type { BatchFailure } from '../db/batch-failures.ts'
import type { BatchFilter, BatchJob, BatchStatus } from '../db/batch-jobs.ts'
import type { BatchProgress } from '../db/batch-positions.ts'
import type { BatchRunRecord } from '../db/batch-runs.ts'
import {
  type DistributedTransaction,
  type ListFilter,
  listTransactions,
} from '../db/distributed-transactions.ts'
import type { EventRunner } from '../db/event-runner.ts'
import { recordSeen } from '../db/inbox-seen.ts'
import type { Job, JobFilter, JobStatus } from '../db/jobs.ts'
import type { Json } from '../db/json.ts'
import { appendEvents, type NewEvent } from '../db/outbox.ts'
import type { Force } from '../jobs/batch-control.ts'
import { type Begun, beginDistributed } from '../jobs/begin.ts'
import type { BeginOptions } from '../jobs/begin-options.ts'
import { commitDistributed, rollbackDistributed } from '../jobs/coordinator.ts'
import type { DryRun, DryRunOptions } from '../jobs/dry-run-batch.ts'
import type { EnqueuedBatch, WaitOptions } from '../jobs/enqueue-batch.ts'
import type { Enqueued, EnqueueOptions } from '../jobs/enqueue-job.ts'
import type { Progress } from '../jobs/finish.ts'
import {
  type IdempotentOptions,
  type IdempotentResult,
  type IdempotentWork,
  idempotent,
} from '../jobs/idempotent.ts'
import type { JobWaitOptions } from '../jobs/job-control.ts'
import type { AsJson, WithResult } from '../jobs/job-definition.ts'
import { type Outcome, outcome } from '../jobs/outcome.ts'
import { type RunResult, type RunSpec, runDistributed } from '../jobs/run-distributed.ts'
import type { Work } from '../jobs/stage-work.ts'
import type { Verification } from '../jobs/verify-batch.ts'
import { type VoteOptions, type VoteResult, vote } from '../jobs/vote.ts'
import { Batches } from './batches.ts'
import { type Checked, type HoldfastConfig, resolveConfig } from './config.ts'
import { type Context, createContext } from './context.ts'
import { Jobs } from './jobs.ts'
import { createLog } from './log.ts'
import { Schedules, type ScheduleView } from './schedules.ts'
import { WorkerService, type WorkOn } from './worker.ts'

type DatabaseName<C> = C extends { databases: infer D } ? (keyof D & string) | 'primary' : string
type BatchName<C> = C extends { batches: readonly (infer B)[] }
  ? B extends { name: infer N }
    ? N
    : string
  : string

type JobOf<C> = C extends { jobs: readonly (infer J)[] } ? J : { readonly name: string }
export type JobName<C> = JobOf<C> extends { readonly name: infer N } ? N & string : string
/** What a job may be enqueued with; of a name, that of the config's definition. */
type InputOf<J> = J extends { readonly input?: infer S }
  ? NonNullable<S> extends StandardSchemaV1
    ? [NonNullable<S>] extends [never]
      ? unknown
      : StandardSchemaV1.InferInput<NonNullable<S>>
    : unknown
  : unknown
export type InputFor<C, J> = J extends string
  ? InputOfNamed<Extract<JobOf<C>, { readonly name: J }>>
  : InputOf<J>
/** What a job's effects return, as JSON carries it; of a name, those of the config's definition. */
type ResultFor<C, J> = J extends string ? ResultOf<Extract<JobOf<C>, { readonly name: J }>> : ResultOf<J>
type ResultOf<J> = [J] extends [never]
  ? Json
  : J extends WithResult<infer R>
    ? unknown extends R
      ? Json
      : AsJson<R>
    : Json
type InputOfNamed<J> = [J] extends [never] ? unknown : InputOf<J>

type StagedBy<W> = { [K in keyof W]: W[K] extends (...args: never[]) => infer R ? Awaited<R> : never }

export interface Holdfast<C extends HoldfastConfig = HoldfastConfig> {
  /**
   * Runs work on one database (`primary`) or several, prepares all of it and returns. From then on it is durable,
   * invisible, locked and named, until it is committed or rolled back by name, here or in another process.
   *
   * Throws HOLDFAST_INVALID_NAME, HOLDFAST_NAME_IN_USE, HOLDFAST_UNKNOWN_PARTICIPANT, HOLDFAST_NOT_PREPARED (with the
   * database's error as cause), HOLDFAST_NO_SLOTS, HOLDFAST_TWO_PHASE_DISABLED, or the work's own error; then nothing
   * is left prepared.
   */
  beginDistributed<T>(name: string, work: Work<T>, options?: BeginOptions): Promise<Begun<T>>
  beginDistributed<W extends { readonly [K in DatabaseName<C>]?: Work<unknown> }>(
    name: string,
    work: W & { readonly [K in Exclude<keyof W, DatabaseName<C>>]: never },
    options?: BeginOptions,
  ): Promise<Begun<StagedBy<W>>>
  /** Commits everywhere. Again is harmless; after a rollback it throws HOLDFAST_ROLLED_BACK. */
  commitDistributed(name: string): Promise<Progress<'committed' | 'committing'>>
  /** Rolls back everywhere. Again is harmless; after a commit it throws HOLDFAST_COMMITTED. */
  rollbackDistributed(name: string, reason?: string): Promise<Progress<'rolled_back' | 'rolling_back'>>
  /**
   * Stage, effects, commit in one call; when effects throw: roll back, compensate, and the error comes back. Called again
   * with the same name it resumes what is there: see the class of races in its source, and docs/protocol.md.
   *
   * `staged` is what the work returned, `result` what effects returned, both as JSON carries them. Throws what
   * beginDistributed throws, HOLDFAST_NAME_IN_USE while another run of the name lives, HOLDFAST_ROLLED_BACK when the
   * deadline or an operator rolled it back meanwhile, or the error of the effects.
   */
  runDistributed<T, R = void>(
    name: string,
    spec: RunSpec<T, R> & { stage: Work<T> },
  ): Promise<RunResult<T, R>>
  runDistributed<W extends { readonly [K in DatabaseName<C>]?: Work<unknown> }, R = void>(
    name: string,
    spec: Omit<RunSpec<StagedBy<W>, R>, 'stage'> & { stage: W },
  ): Promise<RunResult<StagedBy<W>, R>>
  /** What became of a name, with the evidence that was looked at. */
  outcome(name: string): Promise<Outcome>
  /**
   * A service's vote on a transaction that awaits it. The last `ready` commits, the first `abort` rolls back. The same
   * vote again changes nothing. Throws HOLDFAST_VOTE_CONFLICT, HOLDFAST_UNKNOWN_PARTICIPANT, HOLDFAST_NOT_ALLOWED (wrong
   * token), and HOLDFAST_ROLLED_BACK for a `ready` that comes too late.
   */
  vote(name: string, service: string, choice: 'ready' | 'abort', options?: VoteOptions): Promise<VoteResult>
  /** What is not at its end or needs an operator, oldest first; or what has a given status, newest first. */
  listDistributed(filter?: ListFilter): Promise<DistributedTransaction[]>
  /** This process's metrics in Prometheus' text format. */
  metrics(): Promise<string>
  /** Appends events to the outbox in the caller's transaction; they go out exactly if it commits. Returns their ids. */
  publish(tx: EventRunner, events: NewEvent | readonly NewEvent[]): Promise<string[]>
  /**
   * Records, in the transaction that does a consumer's work, that it has seen an event. True: it is new, do the work.
   * False: a transaction that committed has done it. Works in every database that takes part, each by itself.
   *
   * While another transaction that has recorded the same event is open or prepared, this waits for its end: false when
   * it commits, true when it rolls back. A `lock_timeout` ends the wait (55P03). Under REPEATABLE READ and SERIALIZABLE
   * it throws 40001 for a row that was committed after the snapshot: roll back and run the whole transaction again.
   * Who records several events in one transaction does it in one order everywhere, or two may deadlock (40P01).
   *
   * It is remembered for `retention.seenMs` (default 30 days); an event that comes again later is new. Ids are unique
   * for one source: with several sources, put the source into the consumer. Both are texts of 1 to 200 characters, or it
   * throws HOLDFAST_INVALID_PAYLOAD, as for what is no transaction.
   */
  once(tx: EventRunner, consumer: string, eventId: string): Promise<boolean>
  /**
   * Does work on `primary` once for each (scope, key), and gives every later call the response of the first. Work and
   * response are committed together; the response is what JSON makes of it, also on the first call.
   *
   * Throws HOLDFAST_IDEMPOTENCY_IN_FLIGHT while another call has the key (with `wait` only after that time; `retryAfterMs`
   * says when to come again), HOLDFAST_IDEMPOTENCY_MISMATCH when the key was used with another fingerprint,
   * HOLDFAST_FENCED when the claim was lost while the work ran, HOLDFAST_UNKNOWN_OUTCOME when the database cannot say what
   * became of a lost commit, HOLDFAST_RESPONSE_TOO_LARGE, HOLDFAST_INVALID_PAYLOAD (scope, key, fingerprint or response),
   * or the work's own error. After all of these nothing of the work is committed, except that after an unknown outcome it
   * may be: call again with the same key.
   */
  idempotent<T extends Json>(
    options: IdempotentOptions,
    work: IdempotentWork<T>,
  ): Promise<IdempotentResult<T>>
  /**
   * Enqueues a job of the config, or by its name; its input is validated first (HOLDFAST_INVALID_PAYLOAD) and stored as it
   * was given. With `tx`, a transaction on `primary`, the job exists exactly if that commits, and workers find it within
   * `timing.assertEveryMs` after.
   *
   * While a transaction that has enqueued the same `deduplication.id` is open or prepared, this waits for its end; a
   * `lock_timeout` ends the wait (55P03).
   */
  enqueue<const J extends JobName<C> | { readonly name: JobName<C> }>(
    job: J,
    input: InputFor<C, J>,
    options?: EnqueueOptions,
  ): Promise<Enqueued<ResultFor<C, J>>>
  readonly jobs: {
    get(jobId: string): Promise<Job | undefined>
    /** The newest first; a hundred unless `limit` says otherwise. */
    list(filter?: JobFilter): Promise<Job[]>
    /** Runs what has failed again, with all its attempts before it, and what waits at once. Throws HOLDFAST_WRONG_JOB_STATE. */
    retry(jobId: string): Promise<JobStatus>
    /**
     * Ends a job for good: what it staged is rolled back, what its effects did is compensated. `cancelling` while its run is
     * still to let go. One that has committed completes; throws HOLDFAST_WRONG_JOB_STATE for one that has completed.
     */
    cancel(jobId: string): Promise<JobStatus>
    /** Waits until a job (its id, or what enqueue returned) has ended, or the signal aborts; returns it as it is then. */
    wait<Result = Json>(job: string | Enqueued<Result>, options?: JobWaitOptions): Promise<Job<Result | null>>
  }
  readonly batches: {
    /** Enqueues a batch job; its parameters are validated first (HOLDFAST_INVALID_PAYLOAD). */
    enqueue<P>(
      batch: { readonly name: string; readonly params?: StandardSchemaV1<unknown, P> } | BatchName<C>,
      params?: P,
    ): Promise<EnqueuedBatch>
    /**
     * Stages the first chunks (three unless `chunks` says otherwise), prepares them, and rolls them back: how many rows, how
     * long they take, and what fails. Runs in this process.
     */
    dryRun<P>(
      batch: { readonly name: string; readonly params?: StandardSchemaV1<unknown, P> } | BatchName<C>,
      params?: P,
      options?: DryRunOptions,
    ): Promise<DryRun>
    get(jobId: string): Promise<BatchJob | undefined>
    /** The newest first; a hundred unless `limit` says otherwise. */
    list(filter?: BatchFilter): Promise<BatchJob[]>
    /** How far it is, and how fast. */
    progress(jobId: string): Promise<BatchProgress>
    /** Each time that a worker had it, the newest first. */
    runs(jobId: string, limit?: number): Promise<BatchRunRecord[]>
    /** The rows that it could not process, the oldest first. */
    failures(jobId: string, limit?: number): Promise<BatchFailure[]>
    /**
     * No chunk begins any more until it is resumed; `pausing` while one is under way. `force` does not wait for a run that
     * hangs or whose worker is gone. Throws HOLDFAST_WRONG_BATCH_STATE for a job that has ended, as the next two do.
     */
    pause(jobId: string, options?: Force): Promise<BatchStatus>
    /** Goes on where it stands, also after it has failed. */
    resume(jobId: string): Promise<BatchStatus>
    /** Ends it for good; what its chunks did stays. */
    cancel(jobId: string, options?: Force): Promise<BatchStatus>
    /** Has the rows that were set aside tried again, each by itself; returns how many there are. */
    retryFailures(jobId: string): Promise<number>
    /** Proves from the data that each row of the source was processed exactly once, or says what differs. */
    verify(jobId: string): Promise<Verification>
    /** Returns the job that completed with these parameters, or throws HOLDFAST_BATCH_NOT_COMPLETED. */
    ensureCompleted<P>(
      batch: { readonly name: string; readonly params?: StandardSchemaV1<unknown, P> } | BatchName<C>,
      params?: P,
    ): Promise<BatchJob>
    /** Waits until a job (its id, or what enqueue returned) has ended, or the signal aborts; returns it as it is then. */
    wait(job: string | { jobId: string }, options?: WaitOptions): Promise<BatchJob>
  }
  readonly schedules: {
    /** Each schedule with what it enqueued last and when it is due next, in the order of their names. */
    list(): Promise<ScheduleView[]>
  }
  /**
   * Runs the workers in this process as well, on all queues unless `queues` names some (those of jobs, `outbox`, `cleanup`,
   * `batch`, `schedules`). Throws HOLDFAST_INVALID_CONFIG for a queue that there is none of. Closed meanwhile, it ends with the close.
   */
  start(options?: WorkOn): Promise<void>
  /** Stops the workers within the drain deadline and closes every connection. Idempotent. */
  close(): Promise<void>
}

/** Opens a Holdfast that produces; `start()` makes it work as well. Throws HOLDFAST_INVALID_CONFIG and schema errors. */
export async function createHoldfast<const C extends HoldfastConfig>(
  config: C & Checked<C>,
): Promise<Holdfast<C>> {
  const resolved = resolveConfig(config, process.env)
  const ctx = await createContext(resolved, 'producer', createLog(resolved.logLevel, 'holdfast'))
  return new Instance(ctx)
}

class Instance implements Holdfast {
  readonly #ctx: Context
  readonly #batches: Batches
  readonly #jobs: Jobs
  #workers: WorkerService | undefined
  #started: Promise<void> | undefined
  #givenUp: Promise<void> | undefined
  #closed: Promise<void> | undefined

  constructor(ctx: Context) {
    this.#ctx = ctx
    this.#batches = new Batches(ctx)
    this.#jobs = new Jobs(ctx)
  }

  async beginDistributed(name: string, work: unknown, options?: BeginOptions): Promise<never> {
    return (await beginDistributed(this.#ctx, name, work as Work<unknown>, options)) as never
  }

  commitDistributed(name: string): Promise<Progress<'committed' | 'committing'>> {
    return commitDistributed(this.#ctx, name)
  }

  rollbackDistributed(
    name: string,
    reason = 'rolled back by the caller',
  ): Promise<Progress<'rolled_back' | 'rolling_back'>> {
    return rollbackDistributed(this.#ctx, name, reason)
  }

  async runDistributed(name: string, spec: unknown): Promise<never> {
    return (await runDistributed(this.#ctx, name, spec as RunSpec<unknown, unknown>)) as never
  }

  outcome(name: string): Promise<Outcome> {
    return outcome(this.#ctx, name)
  }

  vote(name: string, service: string, choice: 'ready' | 'abort', options?: VoteOptions): Promise<VoteResult> {
    return vote(this.#ctx, name, service, choice, options)
  }

  listDistributed(filter?: ListFilter): Promise<DistributedTransaction[]> {
    return listTransactions(this.#ctx.databases.primary.sql, filter)
  }

  metrics(): Promise<string> {
    return this.#ctx.telemetry.registry.metrics()
  }

  publish(tx: EventRunner, events: NewEvent | readonly NewEvent[]): Promise<string[]> {
    return appendEvents(tx, events, this.#ctx.eventLimit)
  }

  once(tx: EventRunner, consumer: string, eventId: string): Promise<boolean> {
    return recordSeen(tx, consumer, eventId)
  }

  idempotent<T extends Json>(
    options: IdempotentOptions,
    work: IdempotentWork<T>,
  ): Promise<IdempotentResult<T>> {
    const { leaseMs } = this.#ctx.config.timing
    return idempotent(this.#ctx, { leaseMs, ...options }, work)
  }

  async enqueue(
    job: string | { readonly name: string },
    input: unknown,
    options?: EnqueueOptions,
  ): Promise<never> {
    return (await this.#jobs.enqueue(job, input, options)) as never
  }

  get jobs(): Jobs {
    return this.#jobs
  }

  get batches(): Batches {
    return this.#batches
  }

  get schedules(): Schedules {
    return new Schedules(this.#ctx)
  }

  start(options?: WorkOn): Promise<void> {
    this.#started ??= this.#start(options)
    return this.#started
  }

  async #start(options?: WorkOn): Promise<void> {
    await this.#givenUp
    try {
      if (this.#closed) return await this.#closed
      this.#workers = new WorkerService(this.#ctx, options)
      await this.#workers.start()
    } catch (error) {
      // Closed meanwhile: that is what somebody wanted.
      if (this.#closed) return this.#closed
      this.#givenUp = this.#workers && this.#giveUp(this.#workers)
      this.#started = undefined
      throw error
    }
  }

  /** What a start that failed had begun does not go on by halves, and is over before the next one begins. */
  async #giveUp(workers: WorkerService): Promise<void> {
    const { log } = this.#ctx
    try {
      while (!(await workers.stop())) log.warn('the start failed, and what it had begun has not stopped yet')
    } catch (err) {
      log.warn({ err }, 'the start failed, and what it had begun did not stop cleanly')
    }
  }

  close(): Promise<void> {
    this.#closed ??= this.#close()
    return this.#closed
  }

  async #close(): Promise<void> {
    if (this.#workers && !(await this.#workers.stop())) {
      this.#ctx.log.warn('the drain deadline passed; what still runs is resumed elsewhere')
    }
    await this.#ctx.close()
  }
}
