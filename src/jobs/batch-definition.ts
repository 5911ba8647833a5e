import type { StandardSchemaV1 } from '@standard-schema/spec'
import type { Logger } from 'pino'
import { InvalidConfigError } from '../db/errors.ts'
import type { NewEvent } from '../db/outbox.ts'
import type { Tx } from '../db/tx.ts'
import type { Source } from './keyset.ts'

export type ChunkContext<Params> = {
  /** the chunk's transaction; what it writes commits together with the position */
  tx: Tx
  params: Params
  jobId: string
  /** number of the chunk, from 1 */
  chunk: bigint
  /** appends events in the chunk's transaction */
  publish: (events: NewEvent | readonly NewEvent[]) => Promise<string[]>
  signal: AbortSignal
  log: Logger
}

export type BatchDefinition<Params = unknown, Row extends object = object> = {
  readonly name: string
  /** validated before a job is enqueued, and again at each run */
  readonly params?: StandardSchemaV1<unknown, Params>
  readonly source: Source<Row>
  /** rows per chunk; default 1000 */
  readonly chunkSize?: number
  /** Database work alone: it may run again for the same rows, when the chunk was not committed. */
  process(rows: Row[], context: ChunkContext<Params>): Promise<void>
}

const namePattern = /^[a-z][a-z0-9-]{0,59}$/

/** Defines a batch job. Throws InvalidConfigError that lists everything wrong with it. */
export function defineBatch<const Name extends string, Params = unknown, Row extends object = object>(
  definition: BatchDefinition<Params, Row> & { readonly name: Name },
): BatchDefinition<Params, Row> & { readonly name: Name } {
  const { name, chunkSize = 1000 } = definition
  const problems: string[] = []
  if (!namePattern.test(name)) {
    problems.push(`batch ${JSON.stringify(name)}: a name has lower-case letters, digits and -, at most 60`)
  }
  if (!Number.isSafeInteger(chunkSize) || chunkSize < 1 || chunkSize > 100_000) {
    problems.push(`batch ${name}: chunkSize is a whole number from 1 to 100000, not ${chunkSize}`)
  }
  if (typeof definition.source?.read !== 'function') {
    problems.push(`batch ${name}: source is missing; for example keyset({ table: 'orders', key: ['id'] })`)
  }
  if (typeof definition.process !== 'function') problems.push(`batch ${name}: process is not a function`)
  if (problems.length > 0) throw new InvalidConfigError(problems)
  return definition
}
