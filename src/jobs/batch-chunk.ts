import { recordBatchFailure } from '../db/batch-failures.ts'
import { type BatchJob, type BatchStatus, readBatchStatus } from '../db/batch-jobs.ts'
import { appendBatchPosition, type BatchPosition } from '../db/batch-positions.ts'
import { type Json, sameJson } from '../db/json.ts'
import { committedForwardAttempt } from '../db/markers.ts'
import { appendEvents } from '../db/outbox.ts'
import { stageForward } from '../db/staged-transaction.ts'
import { newAttempt } from '../db/transaction-name.ts'
import type { Tx } from '../db/tx.ts'
import type { BatchDefinition, HookContext } from './batch-definition.ts'
import type { JobContext } from './context.ts'
import type { Chunk } from './source.ts'

/** What the staged transactions of one job have in common. */
export type BatchWork = {
  ctx: JobContext
  definition: BatchDefinition
  job: BatchJob
  params: unknown
  signal: AbortSignal
}

type Send = (query: PromiseLike<unknown>) => void

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

/** The name of a chunk's transaction. */
function chunkName(jobId: string, n: bigint): string {
  return `${jobId}_progress_${n}`
}

/**
 * Reads the rows after a position, processes them and moves the position, all in one transaction. Throws ChunkError when
 * they cannot be processed or the transaction that holds their work cannot be prepared.
 */
export async function runChunk(
  work: BatchWork,
  before: BatchPosition,
  size: number,
): Promise<CommittedChunk> {
  let read: Chunk<object> = { rows: [], keys: [], cursor: null, last: false }
  try {
    return await stageChunk(work, before, async (tx, send, attempt) => {
      read = await work.definition.source.read(tx, before.cursor, size)
      const { rows, digest, cursor, last } = read
      const n = before.n + 1n
      if (rows.length > 0)
        await work.definition.process(rows, { ...hookContext(work, tx, `chunk ${n}`), chunk: n })
      const after = { n, cursor, rowsTotal: before.rowsTotal + BigInt(rows.length), last }
      const record = { jobId: work.job.id, range: 0, attempt, rows: rows.length, failed: 0, digest }
      send(appendBatchPosition(tx, { ...record, ...after }))
      const chunk: CommittedChunk = { position: after, status: undefined }
      send(
        readBatchStatus(tx, work.job.id).then((status) => {
          chunk.status = status
        }),
      )
      return chunk
    })
  } catch (error) {
    throw new ChunkError(error, read.rows.length, read.keys[0] ?? null)
  }
}

/**
 * Moves the position over one row that fails by itself, and records it. Undefined when another row comes next by now: it
 * has not failed.
 */
export async function setRowAside(
  work: BatchWork,
  before: BatchPosition,
  rowKey: Json,
  error: unknown,
): Promise<CommittedChunk | undefined> {
  const { job, definition } = work
  return stageChunk(work, before, async (tx, send, attempt) => {
    const { rows, keys, digest, cursor, last } = await definition.source.read(tx, before.cursor, 1)
    if (!sameJson(keys[0] ?? null, rowKey)) throw new OtherRowError()
    const n = before.n + 1n
    const failed = { jobId: job.id, range: 0, n, rowKey, cursor: before.cursor, error }
    await recordBatchFailure(tx, failed)
    const after = { n, cursor, rowsTotal: before.rowsTotal + BigInt(rows.length), last }
    const record = { jobId: job.id, range: 0, attempt, rows: rows.length, failed: 1, digest }
    send(appendBatchPosition(tx, { ...record, ...after }))
    return { position: after, status: 'running' as const }
  }).catch((failure: unknown) => {
    if (failure instanceof OtherRowError) return undefined
    throw failure
  })
}

class OtherRowError extends Error {}

/** Database work that belongs to the job as a whole, once: its name can commit only once, whoever else tries. */
export async function runHook(
  work: BatchWork,
  step: 'prepared' | 'completed',
  hook: (context: HookContext<unknown>) => Promise<void> | undefined,
): Promise<void> {
  const { ctx, job } = work
  const name = `${job.id}_${step}`
  if ((await committedForwardAttempt(ctx.databases.primary, name)) !== undefined) return
  await stageStep(work, name, async (tx) => hook(hookContext(work, tx, step)))
}

export function hookContext(
  { ctx, job, params, signal }: BatchWork,
  tx: Tx,
  step: string,
): HookContext<unknown> {
  return {
    tx,
    params,
    jobId: job.id,
    publish: (events) => appendEvents(tx, events, ctx.eventLimit),
    signal,
    log: ctx.log.child({ jobId: job.id, step }),
  }
}

function stageChunk(
  work: BatchWork,
  before: BatchPosition,
  stage: (tx: Tx, send: Send, attempt: string) => Promise<CommittedChunk>,
): Promise<CommittedChunk> {
  return stageStep(work, chunkName(work.job.id, before.n + 1n), stage)
}

/** One staged transaction of the job, within the budget of slots. */
export async function stageStep<T>(
  { ctx }: BatchWork,
  name: string,
  stage: (tx: Tx, send: Send, attempt: string) => Promise<T>,
): Promise<T> {
  const attempt = newAttempt(ctx.lease.id)
  const spec = { installation: ctx.installation, attempt, name }
  const result = await ctx.lease.slots.use(() =>
    stageForward(ctx.databases.primary, spec, (tx, send) => stage(tx, send, attempt)),
  )
  ctx.outboxWakeup.committed()
  return result
}
