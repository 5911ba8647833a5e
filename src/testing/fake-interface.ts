import type { ListFilter } from '../db/distributed-transactions.ts'
import type { EventRunner } from '../db/event-runner.ts'
import type { Job } from '../db/jobs.ts'
import type { NewEvent } from '../db/outbox.ts'
import type { Choice } from '../db/votes.ts'
import type { Begun } from '../jobs/begin.ts'
import type { BeginOptions } from '../jobs/begin-options.ts'
import type { Progress } from '../jobs/finish.ts'
import type { JobDefinition } from '../jobs/job-definition.ts'
import type { Operation } from '../jobs/operations.ts'
import type { Outcome } from '../jobs/outcome.ts'
import type { RunResult, RunSpec } from '../jobs/run-distributed.ts'
import type { Work } from '../jobs/stage-work.ts'
import type { VoteOptions, VoteResult } from '../jobs/vote.ts'
import type { Holdfast } from '../workers/holdfast.ts'
import type { FakeEvent } from './fake-events.ts'
import type { FakeJob } from './fake-job-row.ts'
import type { FakeTransaction } from './fake-transactions.ts'
import type { Answer, Statement } from './statements.ts'

export type FakeOptions<
  P extends string = string,
  J extends readonly JobDefinition[] = readonly JobDefinition[],
> = {
  /** the databases that take part; `primary` is always one of them */
  participants?: readonly P[]
  /** the services that may be awaited; default any */
  services?: readonly string[]
  /** by name, as in the config; what compensates a transaction that is rolled back after it was prepared */
  operations?: Readonly<Record<string, Operation>>
  /** as in the config; they run when `runJob` or `runJobs` is called */
  jobs?: J
}

type WorkBy<P extends string> = { readonly [K in P]?: Work<unknown> }
type StagedBy<W> = { [K in keyof W]: W[K] extends (...args: never[]) => infer R ? Awaited<R> : never }

export interface FakeHoldfast<
  P extends string = 'primary',
  J extends readonly JobDefinition[] = readonly JobDefinition[],
> extends Pick<Holdfast<{ jobs: J }>, 'enqueue' | 'jobs' | 'idempotent'> {
  beginDistributed<T>(name: string, work: Work<T>, options?: BeginOptions): Promise<Begun<T>>
  beginDistributed<W extends WorkBy<P | 'primary'>>(
    name: string,
    work: W & { readonly [K in Exclude<keyof W, P | 'primary'>]: never },
    options?: BeginOptions,
  ): Promise<Begun<StagedBy<W>>>
  commitDistributed(name: string): Promise<Progress<'committed' | 'committing'>>
  rollbackDistributed(name: string, reason?: string): Promise<Progress<'rolled_back' | 'rolling_back'>>
  runDistributed<T, R = void>(
    name: string,
    spec: RunSpec<T, R> & { stage: Work<T> },
  ): Promise<RunResult<T, R>>
  runDistributed<W extends WorkBy<P | 'primary'>, R = void>(
    name: string,
    spec: Omit<RunSpec<StagedBy<W>, R>, 'stage'> & { stage: W },
  ): Promise<RunResult<StagedBy<W>, R>>
  outcome(name: string): Promise<Outcome>
  vote(name: string, service: string, vote: Choice, options?: VoteOptions): Promise<VoteResult>
  listDistributed(filter?: ListFilter): Promise<FakeTransaction[]>
  publish(tx: EventRunner, events: NewEvent | readonly NewEvent[]): Promise<string[]>
  once(tx: EventRunner, consumer: string, eventId: string): Promise<boolean>

  /** Every attempt, oldest first, as it is now. */
  readonly transactions: FakeTransaction[]
  /** Every event, oldest first. */
  readonly events: FakeEvent[]
  /** Every job that was enqueued, oldest first, as it is now, with what became of the transaction it was enqueued in. */
  readonly enqueued: FakeJob[]
  /**
   * Delivers a job: what is queued runs once, whatever delay or pause it waits for; what a crash has interrupted goes on;
   * anything else is left as it is. Returns the job as it is then. Rejects when the run is ended by `crash`, and throws
   * HOLDFAST_INVALID_CONFIG for a job that is not there (yet).
   */
  runJob(jobId: string): Promise<Job>
  /**
   * Delivers every job that is due, by priority, and once each: none that waits for its delay or its pause, and none that
   * these enqueue. Returns them as they are then.
   */
  runJobs(): Promise<Job[]>
  /** What one database was asked, in order; of one transaction, if named. */
  statements(participant?: P | 'primary', transaction?: string): Statement[]
  /**
   * Answers statements whose text contains or matches the pattern: with rows, with what a function makes of the
   * statement, or with an error. The newest that fits counts; without any, a statement answers with no rows.
   */
  answer(pattern: RegExp | string, answer: Answer, participant?: P | 'primary'): void
  /**
   * The deadline passes: what nobody decided is rolled back (`cleaned_up`) and compensated, once its effects are back. A job
   * between two runs goes on with what it has staged.
   */
  expire(name: string): Promise<void>
  /**
   * The process that is at the effects of this name dies: its runDistributed rejects, nothing is decided, and the next
   * runDistributed of the name goes on with what was staged; of `job:<id>`, runJob. Throws HOLDFAST_INVALID_CONFIG when none
   * is at them.
   */
  crash(name: string): void
  /** The time to live of an idempotent call's response passes. Throws HOLDFAST_INVALID_CONFIG when there is none. */
  expireKey(id: { scope: string; key: string }): void
}
