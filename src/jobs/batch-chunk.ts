import { setImmediate as yieldToSocket } from 'node:timers/promises'
import { recordBatchFailure } from '../db/batch-failures.ts'
import { type BatchStatus, readBatchStatus } from '../db/batch-jobs.ts'
import { appendBatchPosition, type BatchPosition } from '../db/batch-positions.ts'
import type { BatchRange } from '../db/batch-ranges.ts'
import { type Json, sameJson } from '../db/json.ts'
import type { Tx } from '../db/tx.ts'
import { type BatchTxs, type BatchWork, hookContext, stageStep } from './batch-step.ts'
import type { Ahead, ReadAhead } from './read-ahead.ts'
import type { Chunk, Source } from './source.ts'

/** `status`: what was asked of the job until its chunk was at its end. */
export type CommittedChunk = { position: BatchPosition; status: BatchStatus | undefined }

/** `size`: how many rows were asked for. `tookMs`: the transaction, without one that was in vain. */
export type ProcessedChunk = CommittedChunk & { size: number; tookMs: number }

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
  at: BatchRange,
  size: number,
  ahead?: ReadAhead,
): Promise<ProcessedChunk> {
  const early = await ahead?.take(at.position.cursor, at.until)
  if (early) {
    try {
      const chunk = await tryChunk(work, at, size, ahead, early)
      ahead?.held()
      return chunk
    } catch (error) {
      if (!(error instanceof ChangedSinceError)) throw error
      ahead?.changed()
    }
  }
  return tryChunk(work, at, size, ahead)
}

async function tryChunk(
  work: BatchWork,
  { range, until, position: before }: BatchRange,
  size: number,
  ahead: ReadAhead | undefined,
  early?: Ahead,
): Promise<ProcessedChunk> {
  const began = performance.now()
  let read: Chunk<object> = early?.chunk ?? { rows: [], keys: [], cursor: null, last: false }
  const n = before.n + 1n
  try {
    const committed = await stageStep(work, `${chunkPrefix(work, range)}${n}`, async (txs, send, attempt) => {
      if (!early) read = await readSource(work, txs, before.cursor, size, until)
      const { rows, digest, cursor, last, unreadable } = read
      // Whatever the work makes of the array.
      const count = rows.length
      await unlessChanged(work, txs, early, async () => {
        if (unreadable) throw unreadable
        if (!last) ahead?.start(cursor, size, until)
        if (count > 0)
          await work.definition.process(rows, { ...hookContext(work, txs, `chunk ${n}`), chunk: n, range })
      })
      const after = { n, cursor, rowsTotal: before.rowsTotal + BigInt(count), last }
      const record = { jobId: work.job.id, range, attempt, rows: count, failed: 0, digest }
      send(appendBatchPosition(txs.primary, { ...record, ...after }))
      const chunk: CommittedChunk = { position: after, status: undefined }
      send(
        readBatchStatus(txs.primary, work.job.id).then((status) => {
          chunk.status = status
        }),
      )
      return chunk
    })
    return { ...committed, size: early?.size ?? size, tookMs: performance.now() - began }
  } catch (error) {
    if (error instanceof ChangedSinceError) throw error
    throw new ChunkError(error, read.keys.length, read.keys[0] ?? null)
  }
}

/** What a chunk was read ahead from is not so any more: whatever was done with it, and whatever it failed of, was in vain. */
class ChangedSinceError extends Error {
  constructor() {
    super('what was read ahead has changed; the chunk is read again')
  }
}

/**
 * Does work with what was read ahead, and throws ChangedSinceError where it has changed before. That is asked for in the chunk's own
 * transaction, when the chunk before it has committed, and ahead of all that the work does, without waiting for the answer.
 */
async function unlessChanged(
  { source }: BatchWork,
  txs: BatchTxs,
  early: Ahead | undefined,
  act: () => Promise<void>,
): Promise<void> {
  const { version } = early ?? {}
  const asked = version && Promise.resolve(version.ask(sourceTx(source, txs)))
  asked?.catch(() => undefined)
  // On its way before the work begins: the server answers while the work computes.
  if (asked) await yieldToSocket()
  let failed: { error: unknown } | undefined
  try {
    await act()
  } catch (error) {
    failed = { error }
  }
  // Where the question itself failed, what came after it failed of that.
  const now = await asked
  if (now !== version?.read) throw new ChangedSinceError()
  if (failed) throw failed.error
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
  return source.read(sourceTx(source, txs), cursor, limit, until)
}

function sourceTx({ database = 'primary' }: Source<object>, txs: BatchTxs): Tx {
  const tx = txs[database]
  if (!tx) throw new Error(`the step does not take part in ${database}, where the source is`)
  return tx
}
