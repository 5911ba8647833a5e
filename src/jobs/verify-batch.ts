import { countFailures } from '../db/batch-failures.ts'
import { findBatchJob } from '../db/batch-jobs.ts'
import { listChunks } from '../db/batch-positions.ts'
import { readRanges } from '../db/batch-ranges.ts'
import { InvalidConfigError } from '../db/errors.ts'
import { type Json, sameJson } from '../db/json.ts'
import { type BatchDefinition, sourceOf } from './batch-definition.ts'
import { sourceDatabase } from './batch-step.ts'
import type { JobContext } from './context.ts'
import { parseParams, unknownBatchJob } from './enqueue-batch.ts'
import type { Source } from './source.ts'

/**
 * Compares what a job's chunks recorded, each in the transaction that did its work, with what the source says now.
 *
 * Why that proves that each row was processed exactly once: the ranges cover the source, each beginning where another one
 * ends; in a range chunk n starts where chunk n - 1 ended and no number is missing, so no key lies in two chunks or in
 * none; a chunk committed its work, its count of rows and the digest of their
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
  /** how many ranges there are; more than `parallel` when some were split */
  ranges: number
  /** the ranges cover the source without overlap: always, unless somebody changed them */
  covered: boolean
  /** chunks that are missing although a later one is there: never, unless somebody deleted them */
  missing: { range: number; chunk: bigint }[]
  /** what stands in the source in the intervals of the chunks now */
  source: { rows: bigint }
  /** chunks whose rows are no longer the same, at most a hundred */
  changed: ChangedChunk[]
  changedChunks: number
  /** rows outside the chunks' intervals: inserted since, or the job is not at its end */
  beyond: bigint | undefined
}

export type ChangedChunk = {
  range: number
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
  const definition = definitions.get(job.batch)
  if (!definition)
    throw new InvalidConfigError([`the config has no batch ${job.batch}, whose source is to be compared`])
  const source = sourceOf(definition, await parseParams(definition, job.params))
  if (!source.digest)
    throw new InvalidConfigError([`the source of ${job.batch} cannot be compared: it has no \`digest\``])
  const recorded = await readRanges(sql, jobId)
  // A job from before there were ranges.
  const ranges = recorded.length > 0 ? recorded : [{ range: 0, after: null, until: null }]
  const result: Verification = {
    jobId,
    status: job.status,
    proved: false,
    ranges: ranges.length,
    covered: areJoined(ranges),
    chunks: 0n,
    rows: { processed: 0n, failed: 0n },
    missing: [],
    source: { rows: 0n },
    changed: [],
    changedChunks: 0,
    beyond: undefined,
  }
  let atEnd = true
  for (const range of ranges) {
    if (!(await verifyRange(ctx, result, range, source, signal))) atEnd = false
  }
  const failed = await countFailures(sql, jobId)
  const all = await source.count?.(sourceDatabase({ ctx, source }).sql)
  if (all?.exact === true) result.beyond = all.rows - result.source.rows
  result.proved =
    job.status === 'completed' &&
    atEnd &&
    result.covered &&
    result.missing.length === 0 &&
    result.changedChunks === 0 &&
    failed === 0
  return result
}

type Range = { range: number; after: Json; until: Json }

/** From the beginning to the end, each range where another one ended. */
function areJoined(ranges: readonly Range[]): boolean {
  let end: Json = null
  for (let visited = 1; visited <= ranges.length; visited++) {
    const next = ranges.find(({ after }) => sameJson(after, end))
    if (!next) return false
    end = next.until
    if (end === null) return visited === ranges.length
  }
  return false
}

/** Adds the range to the result; whether its last chunk is the end of it. */
async function verifyRange(
  ctx: JobContext,
  result: Verification,
  { range, after: start }: Range,
  source: Source<object>,
  signal: AbortSignal,
): Promise<boolean> {
  const { sql } = ctx.databases.primary
  if (!source.digest) return false
  let after = start
  let expected = 1n
  let last = false
  for (;;) {
    const chunks = await listChunks(sql, result.jobId, range, expected, pageSize)
    for (const chunk of chunks) {
      signal.throwIfAborted()
      for (; expected < chunk.n; expected++) result.missing.push({ range, chunk: expected })
      expected = chunk.n + 1n
      last = chunk.last
      // One that only split the range is none.
      if (chunk.rows > 0n || chunk.last) result.chunks++
      // One without rows moves nothing; what was before it has been counted.
      if (sameJson(after, chunk.cursor)) continue
      const { rows, digest } = await source.digest(sourceDatabase({ ctx, source }).sql, after, chunk.cursor)
      result.rows.processed += chunk.rows - chunk.failed
      result.rows.failed += chunk.failed
      result.source.rows += rows
      if (rows !== chunk.rows || digest !== (chunk.digest ?? 0n)) {
        result.changedChunks++
        if (result.changed.length < shown) {
          const { n, cursor, rows: read } = chunk
          result.changed.push({ range, chunk: n, after, until: cursor, read, now: rows })
        }
      }
      after = chunk.cursor
    }
    if (chunks.length < pageSize) return last
  }
}
