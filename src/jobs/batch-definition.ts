import type { StandardSchemaV1 } from '@standard-schema/spec'
import type { Logger } from 'pino'
import { InvalidConfigError } from '../db/errors.ts'
import { messageOf } from '../db/message-of.ts'
import type { NewEvent } from '../db/outbox.ts'
import type { Tx } from '../db/tx.ts'
import type { Source } from './source.ts'
import { checkThrottleLimits, type ThrottleLimits } from './throttle.ts'

export type HookContext<Params> = {
  /** the transaction of this step; what it writes commits together with the job's progress, or not at all */
  tx: Tx
  params: Params
  jobId: string
  /** appends events in this transaction */
  publish: (events: NewEvent | readonly NewEvent[]) => Promise<string[]>
  signal: AbortSignal
  log: Logger
}

export type ChunkContext<Params> = HookContext<Params> & {
  /** number of the chunk, from 1; 0 for a row that is tried again by itself */
  chunk: bigint
}

export type AdaptiveSize = {
  min: number
  max: number
  /** milliseconds from the read of a chunk to its commit */
  targetMs: number
}

export type BatchDefinition<Params = unknown, Row extends object = object> = {
  readonly name: string
  /** validated before a job is enqueued, and again at each run */
  readonly params?: StandardSchemaV1<unknown, Params>
  readonly source: Source<Row>
  /** rows per chunk; default 1000. Adaptive: as many as take about `targetMs`, from `min` to `max` rows */
  readonly chunkSize?: number | AdaptiveSize
  /** when to hold for the sake of the database; why it holds shows in `holdfast batch show` */
  readonly throttle?: ThrottleLimits
  /** 'params': while a job with the same parameters is neither completed nor cancelled, enqueueing returns that one */
  readonly unique?: 'params'
  /** how many rows may be set aside because they cannot be processed; one more and the job fails. Default 0 */
  readonly skipLimit?: number
  /** after how long a run lets go, so that other jobs have their turn; another run goes on. Milliseconds */
  readonly maxRunMs?: number
  /** Database work before the first chunk; commits exactly once. */
  prepareRun?(context: HookContext<Params>): Promise<void>
  /** Database work after the last chunk; commits exactly once. */
  completed?(context: HookContext<Params>): Promise<void>
  /** Database work alone: it may run again for the same rows, when the chunk was not committed. */
  process(rows: Row[], context: ChunkContext<Params>): Promise<void>
}

function throttleProblems(name: string, limits: ThrottleLimits): string[] {
  try {
    checkThrottleLimits(limits)
    return []
  } catch (error) {
    return [`batch ${name}: ${messageOf(error)}`]
  }
}

/** Of batches, and of schedules, which are named after them. */
export const definitionName = /^[a-z][a-z0-9-]{0,59}$/

/** Defines a batch job. Throws InvalidConfigError that lists everything wrong with it. */
export function defineBatch<const Name extends string, Params = unknown, Row extends object = object>(
  definition: BatchDefinition<Params, Row> & { readonly name: Name },
): BatchDefinition<Params, Row> & { readonly name: Name } {
  const { name, chunkSize = 1000, throttle } = definition
  const problems: string[] = []
  if (!definitionName.test(name)) {
    problems.push(`batch ${JSON.stringify(name)}: a name has lower-case letters, digits and -, at most 60`)
  }
  const { min, max, targetMs } =
    typeof chunkSize === 'number' ? { min: chunkSize, max: chunkSize, targetMs: 1 } : chunkSize
  const isSize = (size: number) => Number.isSafeInteger(size) && size >= 1 && size <= 100_000
  if (!isSize(min) || !isSize(max) || min > max)
    problems.push(
      `batch ${name}: chunkSize is a whole number from 1 to 100000, or { min, max, targetMs } of such, not ${JSON.stringify(chunkSize)}`,
    )
  if (!(targetMs > 0)) problems.push(`batch ${name}: chunkSize.targetMs is above 0, not ${targetMs}`)
  if (throttle) problems.push(...throttleProblems(name, throttle))
  const { skipLimit = 0, maxRunMs = 1, unique = 'params' } = definition
  if (!Number.isSafeInteger(skipLimit) || skipLimit < 0)
    problems.push(`batch ${name}: skipLimit is a whole number, 0 or more, not ${skipLimit}`)
  if (!(maxRunMs > 0)) problems.push(`batch ${name}: maxRunMs is above 0, not ${maxRunMs}`)
  if (unique !== 'params') problems.push(`batch ${name}: unique is 'params' or left out`)
  if (typeof definition.source?.read !== 'function') {
    problems.push(`batch ${name}: source is missing; for example keyset({ table: 'orders', key: ['id'] })`)
  }
  if (typeof definition.process !== 'function') problems.push(`batch ${name}: process is not a function`)
  if (problems.length > 0) throw new InvalidConfigError(problems)
  return definition
}
