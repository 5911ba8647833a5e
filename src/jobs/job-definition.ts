import type { StandardSchemaV1 } from '@standard-schema/spec'
import type { Logger } from 'pino'
import { InvalidConfigError } from '../db/errors.ts'
import type { NewEvent } from '../db/outbox.ts'
import type { Tx } from '../db/tx.ts'
import { queueOf, queueProblem } from './job-queue.ts'

/** A value as JSON carries it: what `stage` and `effects` return is stored, and a resumed run gets it from there. */
export type AsJson<T> = 0 extends 1 & T
  ? T
  : unknown extends T
    ? T
    : T extends null | boolean | number | string
      ? T
      : T extends undefined | void
        ? null
        : T extends { toJSON(): infer J }
          ? AsJson<J>
          : T extends (...args: never[]) => unknown
            ? never
            : T extends object
              ? {
                  [K in keyof T]: undefined extends T[K]
                    ? AsJson<Exclude<T[K], undefined>> | undefined
                    : AsJson<T[K]>
                }
              : never

type Common<Input> = {
  input: Input
  jobId: string
  signal: AbortSignal
  log: Logger
}

export type StageContext<Input, Participant extends string> = Common<Input> & {
  /** the transaction on `primary`, where that takes part */
  tx: 'primary' extends Participant ? Tx : undefined
  /** the transactions by participant */
  txs: { readonly [P in Participant]: Tx }
  /** appends events on `primary`; they go out exactly if the job commits */
  publish: (events: NewEvent | readonly NewEvent[]) => Promise<string[]>
}

export type JobEffectsContext<Input, Staged> = Common<Input> & {
  staged: AsJson<Staged>
  /**
   * the same each time effects run for what was staged, and without `compensate` for the whole life of the job; give it
   * to the services that you call
   */
  idempotencyKey: string
}

export type JobCompensationContext<Input, Staged> = Common<Input> & {
  staged: AsJson<Staged>
  /** of this compensation, the same each time it runs */
  idempotencyKey: string
  /** the idempotencyKey that the effects had, which this undoes */
  effectsKey: string
  /** why it was rolled back */
  reason: string | null
}

export type RetryOptions = {
  /** how many attempts may fail before the job has; default 5 */
  readonly attempts?: number
  /** the pause after the first failure, doubled after each further one; default 1,000 */
  readonly backoffMs?: number
  /** default 300,000 */
  readonly maxBackoffMs?: number
}

/** A job as the config holds it. */
export type JobDefinition = {
  readonly name: string
  readonly input?: StandardSchemaV1
  readonly participants?: readonly string[]
  readonly retry?: RetryOptions
  readonly timeoutMs?: number
  readonly concurrency?: number
  readonly queue?: string
  stage(context: StageContext<unknown, string>): unknown
  effects?(context: JobEffectsContext<unknown, unknown>): unknown
  compensate?(context: JobCompensationContext<unknown, unknown>): Promise<void> | void
}

type OutputOf<S> = S extends StandardSchemaV1 ? StandardSchemaV1.InferOutput<S> : unknown

export type JobSpec<
  Name extends string,
  S extends StandardSchemaV1 | undefined,
  P extends string,
  Staged,
  Result,
> = {
  readonly name: Name
  /** what a job may be enqueued with; a Standard Schema (zod, valibot, arktype). Without it: anything that is JSON */
  readonly input?: S
  /** the databases whose transactions `stage` gets; default `primary` */
  readonly participants?: readonly P[]
  /** Database work, through `tx` and `txs` alone; it commits exactly once, or not at all. */
  stage(context: StageContext<OutputOf<S>, P>): Promise<Staged> | Staged
  /** What happens outside the databases, between PREPARE and COMMIT; may run twice. When it throws, all is rolled back. */
  effects?(context: JobEffectsContext<OutputOf<S>, Staged>): Promise<Result> | Result
  /** Undoes, outside the databases, what effects may have done, once the rollback is proved; may run twice. */
  compensate?(context: JobCompensationContext<OutputOf<S>, Staged>): Promise<void> | void
  readonly retry?: RetryOptions
  /** for stage and effects together, milliseconds; default 10 minutes. Past it the job is rolled back */
  readonly timeoutMs?: number
  /** how many of these one worker process runs at once; default as many as it can */
  readonly concurrency?: number
  /** the queue that it runs from, whose limits are in `queues` of the config; default `jobs` */
  readonly queue?: string
}

declare const resultOf: unique symbol
/** Carries the type of a job's result from its definition to whoever waits for it; there is no such property. */
export type WithResult<Result> = { readonly [resultOf]?: Result }

/** What `defineJob` returns: the definition with the types of its name, input, participants and result. */
export type DefinedJob<
  Name extends string,
  S extends StandardSchemaV1 | undefined,
  P extends string,
  Result = unknown,
> = JobDefinition &
  WithResult<Result> & { readonly name: Name; readonly input?: S; readonly participants: readonly P[] }

const namePattern = /^[a-z][a-z0-9-]{0,49}$/

/** Defines a job. Throws InvalidConfigError that lists everything wrong with it. */
export function defineJob<
  const Name extends string,
  S extends StandardSchemaV1 | undefined = undefined,
  const P extends string = 'primary',
  Staged = unknown,
  Result = unknown,
>(
  spec: JobSpec<Name, S, P, Staged, Result>,
): DefinedJob<NoInfer<Name>, NoInfer<S>, NoInfer<P>, NoInfer<Result>> {
  const { name, participants = ['primary' as P], retry = {}, timeoutMs = 1, concurrency = 1 } = spec
  const { attempts = 1, backoffMs = 1, maxBackoffMs = 1 } = retry
  const problems: string[] = []
  const queue = queueOf(spec)
  const isCount = (n: number) => Number.isSafeInteger(n) && n >= 1
  if (!namePattern.test(name))
    problems.push(`job ${JSON.stringify(name)}: a name has lower-case letters, digits and -, at most 50`)
  if (typeof spec.stage !== 'function') problems.push(`job ${name}: stage is not a function`)
  for (const part of ['effects', 'compensate'] as const)
    if (spec[part] !== undefined && typeof spec[part] !== 'function')
      problems.push(`job ${name}: ${part} is not a function`)
  if (spec.compensate && !spec.effects)
    problems.push(`job ${name}: compensate undoes what effects did, and there are none`)
  if (participants.length === 0 || new Set(participants).size < participants.length)
    problems.push(`job ${name}: participants names each database once, and one at least`)
  if (!isCount(attempts))
    problems.push(`job ${name}: retry.attempts is a whole number, 1 or more, not ${attempts}`)
  if (!(backoffMs > 0) || !(maxBackoffMs > 0))
    problems.push(`job ${name}: retry.backoffMs and retry.maxBackoffMs are above 0`)
  if (!(timeoutMs > 0) || !Number.isFinite(timeoutMs))
    problems.push(`job ${name}: timeoutMs is above 0, not ${timeoutMs}`)
  if (!isCount(concurrency))
    problems.push(`job ${name}: concurrency is a whole number, 1 or more, not ${concurrency}`)
  const problem = queueProblem(queue)
  if (problem) problems.push(`job ${name}: the name of its queue, ${JSON.stringify(queue)}, ${problem}`)
  if (spec.input !== undefined && typeof spec.input['~standard']?.validate !== 'function')
    problems.push(`job ${name}: input is no Standard Schema (zod, valibot, arktype)`)
  if (problems.length > 0) throw new InvalidConfigError(problems)
  return { ...spec, participants } as unknown as DefinedJob<Name, S, P, Result>
}
