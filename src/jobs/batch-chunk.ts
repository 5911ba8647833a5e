import { recordBatchFailure } from '../db/batch-failures.ts'
import { type BatchStatus, readBatchStatus } from '../db/batch-jobs.ts'
import { appendBatchPosition, type BatchPosition } from '../db/batch-positions.ts'
import type { BatchRange } from '../db/batch-ranges.ts'
import { type Json, sameJson } from '../db/json.ts'
import { type BatchTxs, type BatchWork, hookContext, stageStep } from './batch-step.ts'
import type { ReadAhead } from './read-ahead.ts'
import type { Chunk } from './source.ts'

/** `status`: what was asked of the job until its chunk was at its end. */
export type CommittedChunk = { position: BatchPosition; status: BatchStatus | undefined }

/** What a chunk read, for whoever wants to know why it failed. */
export class ChunkError extends Error {
  readonly rows: number
  readonly firstKey: Json

  constructor(cause: unknown, rows: number, firstKey: Json) {
    super('a chunk could not be processed', { cause })
    this.rows = rows
    this.firstKey = firstKey
  }
}

/** The names of a range's chunks start so. */
export function chunkPrefix({ job, definition }: BatchWork, range: number): string {
  return definition.parallel === undefined ? `${job.id}_progress_` : `${job.id}_r${range}_progress_`
}

/**
 * Reads the rows after a position, processes them and moves the position, all in one transaction. Throws ChunkError when
 * they cannot be processed or the transaction that holds their work cannot be prepared.
 */
export async function runChunk(
  work: BatchWork,
  { range, until, position: before }: BatchRange,
  size: number,
  ahead?: ReadAhead,
): Promise<CommittedChunk> {
  let read: Chunk<object> = { rows: [], keys: [], cursor: null, last: false }
  const n = before.n + 1n
  try {
    return await stageStep(work, `${chunkPrefix(work, range)}${n}`, async (txs, send, attempt) => {
      const early = await ahead?.take(before.cursor, size, until)
      read = early ?? (await readSource(work, txs, before.cursor, size, until))
      const { rows, digest, cursor, last, unreadable } = read
      if (unreadable) throw unreadable
      if (!last) ahead?.start(cursor, size, until)
      if (rows.length > 0)
        await work.definition.process(rows, { ...hookContext(work, txs, `chunk ${n}`), chunk: n, range })
      const after = { n, cursor, rowsTotal: before.rowsTotal + BigInt(rows.length), last }
      const record = { jobId: work.job.id, range, attempt, rows: rows.length, failed: 0, digest }
      send(appendBatchPosition(txs.primary, { ...record, ...after }))
      const chunk: CommittedChunk = { position: after, status: undefined }
      send(
        readBatchStatus(txs.primary, work.job.id).then((status) => {
          chunk.status = status
        }),
      )
      return chunk
    })
  } catch (error) {
    throw new ChunkError(error, read.keys.length, read.keys[0] ?? null)
  }
}

/**
 * Moves the position over one row that fails by itself, and records it. Undefined when another row comes next by now: it
 * has not failed.
 */
export async function setRowAside(
  work: BatchWork,
  { range, until, position: before }: BatchRange,
  rowKey: Json,
  error: unknown,
): Promise<CommittedChunk | undefined> {
  const jobId = work.job.id
  const n = before.n + 1n
  return stageStep(work, `${chunkPrefix(work, range)}${n}`, async (txs, send, attempt) => {
    const { keys, digest, cursor, last } = await readSource(work, txs, before.cursor, 1, until)
    const rows = keys.length
    if (!sameJson(keys[0] ?? null, rowKey)) throw new OtherRowError()
    await recordBatchFailure(txs.primary, { jobId, range, n, rowKey, cursor: before.cursor, error })
    const after = { n, cursor, rowsTotal: before.rowsTotal + BigInt(rows), last }
    const record = { jobId, range, attempt, rows, failed: 1, digest }
    send(appendBatchPosition(txs.primary, { ...record, ...after }))
    return { position: after, status: 'running' as const }
  }).catch((failure: unknown) => {
    if (failure instanceof OtherRowError) return undefined
    throw failure
  })
}

class OtherRowError extends Error {}

/** From the database where the source is. */
export function readSource(
  { source }: Pick<BatchWork, 'source'>,
  txs: BatchTxs,
  cursor: Json,
  limit: number,
  until: Json = null,
): Promise<Chunk<object>> {
  const { database = 'primary' } = source
  const tx = txs[database]
  if (!tx) throw new Error(`the step does not take part in ${database}, where the source is`)
  return source.read(tx, cursor, limit, until)
}
