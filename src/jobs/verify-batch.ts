import { countFailures } from '../db/batch-failures.ts'
import { findBatchJob } from '../db/batch-jobs.ts'
import { listChunks } from '../db/batch-positions.ts'
import { InvalidConfigError } from '../db/errors.ts'
import { type Json, sameJson } from '../db/json.ts'
import type { BatchDefinition } from './batch-definition.ts'
import type { JobContext } from './context.ts'
import { unknownBatchJob } from './enqueue-batch.ts'

/**
 * Compares what a job's chunks recorded, each in the transaction that did its work, with what the source says now.
 *
 * Why that proves that each row was processed exactly once: chunk n starts where chunk n - 1 ended and no number is
 * missing, so no key lies in two chunks or in none; a chunk committed its work, its count of rows and the digest of their
 * keys together; and the digest of the same interval of the source is that of the same keys. What differs was inserted,
 * deleted or given another key since its chunk read it: it is told with the interval, and is no row that was skipped.
 */
export type Verification = {
  jobId: string
  status: string
  /** the job has completed, no chunk is missing, no row failed and nothing has changed */
  proved: boolean
  chunks: bigint
  /** as the chunks recorded them */
  rows: { processed: bigint; failed: bigint }
  /** numbers of chunks that are missing although a later one is there: never, unless somebody deleted them */
  missing: bigint[]
  /** what stands in the source in the intervals of the chunks now */
  source: { rows: bigint }
  /** chunks whose rows are no longer the same, at most a hundred */
  changed: ChangedChunk[]
  changedChunks: number
  /** rows beyond the last chunk: appended since, or the job is not at its end */
  beyond: bigint | undefined
}

export type ChangedChunk = {
  chunk: bigint
  /** the keys between which it lies: after the first, up to and including the second */
  after: Json
  until: Json
  /** how many rows it read, and how many there are now */
  read: bigint
  now: bigint
}

const pageSize = 1_000
const shown = 100

export async function verifyBatch(
  ctx: JobContext,
  definitions: ReadonlyMap<string, BatchDefinition>,
  jobId: string,
  signal: AbortSignal = new AbortController().signal,
): Promise<Verification> {
  const { sql } = ctx.databases.primary
  const job = await findBatchJob(sql, jobId)
  if (!job) throw unknownBatchJob(jobId)
  const { source } = definitions.get(job.batch) ?? {}
  if (!source)
    throw new InvalidConfigError([`the config has no batch ${job.batch}, whose source is to be compared`])
  if (!source.digest)
    throw new InvalidConfigError([`the source of ${job.batch} cannot be compared: it has no \`digest\``])
  const result: Verification = {
    jobId,
    status: job.status,
    proved: false,
    chunks: 0n,
    rows: { processed: 0n, failed: 0n },
    missing: [],
    source: { rows: 0n },
    changed: [],
    changedChunks: 0,
    beyond: undefined,
  }
  let after: Json = null
  let expected = 1n
  let last = false
  for (;;) {
    const chunks = await listChunks(sql, jobId, expected, pageSize)
    for (const chunk of chunks) {
      signal.throwIfAborted()
      for (; expected < chunk.n; expected++) result.missing.push(expected)
      expected = chunk.n + 1n
      last = chunk.last
      // A chunk without rows moves nothing; what was before it has been counted.
      const moved = !sameJson(after, chunk.cursor)
      const { rows, digest } = moved
        ? await source.digest(sql, after, chunk.cursor)
        : { rows: 0n, digest: 0n }
      result.chunks++
      result.rows.processed += chunk.rows - chunk.failed
      result.rows.failed += chunk.failed
      result.source.rows += rows
      if (rows !== chunk.rows || digest !== (chunk.digest ?? 0n)) {
        result.changedChunks++
        if (result.changed.length < shown)
          result.changed.push({ chunk: chunk.n, after, until: chunk.cursor, read: chunk.rows, now: rows })
      }
      after = chunk.cursor
    }
    if (chunks.length < pageSize) break
  }
  const failed = await countFailures(sql, jobId)
  const all = await source.count?.(sql)
  if (all?.exact === true) result.beyond = all.rows - result.source.rows
  result.proved =
    job.status === 'completed' &&
    last &&
    result.missing.length === 0 &&
    result.changedChunks === 0 &&
    failed === 0
  return result
}
