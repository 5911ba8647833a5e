import type { StandardSchemaV1 } from '@standard-schema/spec'
import type { Logger } from 'pino'
import { InvalidConfigError } from '../db/errors.ts'
import { messageOf } from '../db/message-of.ts'
import type { NewEvent } from '../db/outbox.ts'
import type { Tx } from '../db/tx.ts'
import type { Source } from './source.ts'
import { checkThrottleLimits, type ThrottleLimits } from './throttle.ts'

export type HookContext<Params, Database extends string = string> = {
  /** the transaction of this step on `primary`; what it writes commits together with the job's progress, or not at all */
  tx: Tx
  /** the same on each of the batch's databases; all of them commit, or none */
  txs: Readonly<Record<'primary' | Database, Tx>>
  params: Params
  jobId: string
  /** appends events in this transaction */
  publish: (events: NewEvent | readonly NewEvent[]) => Promise<string[]>
  signal: AbortSignal
  log: Logger
}

export type ChunkContext<Params, Database extends string = string> = HookContext<Params, Database> & {
  /** number of the chunk in its range, from 1; 0 for a row that is tried again by itself */
  chunk: bigint
  /** number of the range, 0 without `parallel` */
  range: number
}

export type AdaptiveSize = {
  min: number
  max: number
  /** milliseconds from the read of a chunk to its commit */
  targetMs: number
}

/** Of a method's type, so that definitions of any parameters fit into one list. */
type SourceByParams<Params, Row> = { by(params: Params): Source<Row> }['by']

export type BatchDefinition<
  Params = unknown,
  Row extends object = object,
  Database extends string = string,
> = {
  readonly name: string
  /** validated before a job is enqueued, and again at each run */
  readonly params?: StandardSchemaV1<unknown, Params>
  /** or what makes it of the parameters */
  readonly source: Source<Row> | SourceByParams<Params, Row>
  /** the other databases that `process` and the hooks write to; the one of the source takes part anyway */
  readonly participants?: readonly Database[]
  /** into how many ranges the source is cut, which are processed at once; see docs/batches.md. Default: one */
  readonly parallel?: number
  /** rows per chunk; default 1000. Adaptive: as many as take about `targetMs`, from `min` to `max` rows */
  readonly chunkSize?: number | AdaptiveSize
  /**
   * Each chunk is read while the one before it is processed, and read again where that, or anybody else, has changed what was
   * read; for sources that can tell. true: without looking, of any source. false: when its turn comes, never before
   */
  readonly readAhead?: boolean
  /** when to hold for the sake of the database; why it holds shows in `holdfast batch show` */
  readonly throttle?: ThrottleLimits
  /** 'params': while a job with the same parameters is neither completed nor cancelled, enqueueing returns that one */
  readonly unique?: 'params'
  /** how many rows may be set aside because they cannot be processed; one more and the job fails. Default 0 */
  readonly skipLimit?: number
  /** after how long a run lets go, so that other jobs have their turn; another run goes on. Milliseconds */
  readonly maxRunMs?: number
  /** Database work before the first chunk; commits exactly once. */
  prepareRun?(context: HookContext<Params, Database>): Promise<void>
  /** Database work after the last chunk; commits exactly once. */
  completed?(context: HookContext<Params, Database>): Promise<void>
  /** Database work alone: it may run again for the same rows, when the chunk was not committed. */
  process(rows: Row[], context: ChunkContext<Params, Database>): Promise<void>
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
export function defineBatch<
  const Name extends string,
  Params = unknown,
  Row extends object = object,
  const Database extends string = never,
>(
  definition: BatchDefinition<Params, Row, Database> & { readonly name: Name },
): BatchDefinition<Params, Row, Database> & { readonly name: Name } {
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
  const { source, parallel = 1 } = definition
  if (typeof source !== 'function' && typeof source?.read !== 'function')
    problems.push(`batch ${name}: source is missing; for example keyset({ table: 'orders', key: ['id'] })`)
  if (!Number.isSafeInteger(parallel) || parallel < 1 || parallel > 64)
    problems.push(`batch ${name}: parallel is a whole number from 1 to 64, not ${parallel}`)
  if (parallel > 1 && typeof source === 'object' && typeof source.split !== 'function')
    problems.push(`batch ${name}: its source cannot be split, so \`parallel\` has to go; a keyset can`)
  if (typeof definition.process !== 'function') problems.push(`batch ${name}: process is not a function`)
  if (problems.length > 0) throw new InvalidConfigError(problems)
  return definition
}

/** The source of a job with these parameters. */
export function sourceOf({ source }: BatchDefinition, params: unknown): Source<object> {
  return typeof source === 'function' ? source(params) : source
}
