import type { ListFilter } from '../db/distributed-transactions.ts'
import type { EventRunner } from '../db/event-runner.ts'
import type { NewEvent } from '../db/outbox.ts'
import type { Choice } from '../db/votes.ts'
import type { Begun } from '../jobs/begin.ts'
import type { BeginOptions } from '../jobs/begin-options.ts'
import type { Progress } from '../jobs/finish.ts'
import type { Operation } from '../jobs/operations.ts'
import type { Outcome } from '../jobs/outcome.ts'
import type { RunResult, RunSpec } from '../jobs/run-distributed.ts'
import type { Work } from '../jobs/stage-work.ts'
import type { VoteOptions, VoteResult } from '../jobs/vote.ts'
import type { Published } from './fake-events.ts'
import type { FakeTransaction } from './fake-transactions.ts'
import type { Answer, Statement } from './statements.ts'

export type FakeOptions<P extends string = string> = {
  /** the databases that take part; `primary` is always one of them */
  participants?: readonly P[]
  /** the services that may be awaited; default any */
  services?: readonly string[]
  /** by name, as in the config; what compensates a transaction that is rolled back after it was prepared */
  operations?: Readonly<Record<string, Operation>>
}

type WorkBy<P extends string> = { readonly [K in P]?: Work<unknown> }
type StagedBy<W> = { [K in keyof W]: W[K] extends (...args: never[]) => infer R ? Awaited<R> : never }
export type FakeEvent = Published & {
  /** what became of its transaction; `unknown` for one published in a transaction of the caller's own */
  state: 'pending' | 'committed' | 'rolled_back' | 'unknown'
}

export interface FakeHoldfast<P extends string = 'primary'> {
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
  /** What one database was asked, in order; of one transaction, if named. */
  statements(participant?: P | 'primary', transaction?: string): Statement[]
  /**
   * Answers statements whose text contains or matches the pattern: with rows, with what a function makes of the
   * statement, or with an error. The newest that fits counts; without any, a statement answers with no rows.
   */
  answer(pattern: RegExp | string, answer: Answer, participant?: P | 'primary'): void
  /** The deadline passes: what nobody decided is rolled back (`cleaned_up`) and compensated, once its effects are back. */
  expire(name: string): Promise<void>
  /**
   * The process that is at the effects of this name dies: its runDistributed rejects, nothing is decided, and the next
   * runDistributed of the name goes on with what was staged. Throws HOLDFAST_INVALID_CONFIG when none is at them.
   */
  crash(name: string): void
}
