import { v7 as uuidv7 } from 'uuid'
import type { Json } from '../db/json.ts'
import { messageOf } from '../db/message-of.ts'
import { rollbackPrepared } from '../db/prepared.ts'
import { formatGid, newAttempt } from '../db/transaction-name.ts'
import { readSource } from './batch-chunk.ts'
import { type BatchDefinition, sourceOf } from './batch-definition.ts'
import { type BatchTxs, hookContext, participantsOf } from './batch-step.ts'
import type { JobContext } from './context.ts'
import { parseParams, rawParams } from './enqueue-batch.ts'
import { together } from './stage-together.ts'
import { stageAll } from './stage-work.ts'

/** What a batch would do: its first chunks, staged as a job would stage them, prepared, and rolled back. */
export type DryRun = {
  chunks: DryChunk[]
  rows: number
  /** why it went no further: what a chunk's work or its PREPARE threw */
  error: string | null
  /** the source has nothing beyond these chunks */
  last: boolean
}

export type DryChunk = {
  chunk: number
  rows: number
  /** from the read to the end of the work, and of the PREPARE */
  workMs: number
  prepareMs: number
  /** where the next one begins */
  cursor: Json
}

export type DryRunOptions = { chunks?: number; signal?: AbortSignal }

/**
 * Nothing of it stays: each chunk is rolled back before the next one, so a chunk does not see what the one before it did;
 * `prepareRun` runs in each of them. What is left prepared by a crash is rolled back by recovery: nothing says that it was
 * to commit. Sequences move, as in any transaction that is rolled back.
 */
export async function dryRunBatch(
  ctx: JobContext,
  definition: BatchDefinition,
  params: unknown,
  { chunks = 3, signal = new AbortController().signal }: DryRunOptions = {},
): Promise<DryRun> {
  const raw = await rawParams(definition, params)
  const parsed = await parseParams(definition, raw)
  const id = `${definition.name}-dry-run-${uuidv7()}`
  const work = { ctx, definition, source: sourceOf(definition, parsed), job: { id }, params: parsed, signal }
  await ctx.lease.hold()
  const { chunkSize = 1000 } = definition
  const size = typeof chunkSize === 'number' ? chunkSize : chunkSize.min
  const run: DryRun = { chunks: [], rows: 0, error: null, last: false }
  let cursor: Json = null
  for (let chunk = 1; chunk <= chunks && !run.last && !signal.aborted; chunk++) {
    let began = 0
    let worked = 0
    const process = async (txs: BatchTxs) => {
      await definition.prepareRun?.(hookContext(work, txs, 'prepared'))
      began = performance.now()
      const read = await readSource(work, txs, cursor, size)
      if (read.unreadable) throw read.unreadable
      const context = { ...hookContext(work, txs, `dry run ${chunk}`), chunk: BigInt(chunk), range: 0 }
      if (read.rows.length > 0) await definition.process(read.rows, context)
      worked = performance.now()
      return read
    }
    try {
      const read = await stageAndRollBack(ctx, `${id}_${chunk}`, participantsOf(work), process)
      const { length: rows } = read.rows
      cursor = read.cursor
      const prepareMs = performance.now() - worked
      run.chunks.push({ chunk, rows, workMs: worked - began, prepareMs, cursor })
      run.rows += rows
      run.last = read.last
    } catch (error) {
      run.error = `chunk ${chunk}: ${messageOf(error)}`
      break
    }
  }
  return run
}

async function stageAndRollBack<T>(
  ctx: JobContext,
  name: string,
  participants: readonly string[],
  act: (txs: BatchTxs) => Promise<T>,
): Promise<T> {
  const attempt = newAttempt(ctx.lease.id)
  const { installation, lease, databases } = ctx
  const { work, result } = together(participants, act)
  lease.running.add(attempt)
  try {
    return await lease.slots.use(async () => {
      try {
        await stageAll(ctx, name, attempt, work)
        return result()
      } finally {
        for (const participant of participants) {
          const gid = formatGid({ installation, policy: 'presumed-abort', participant, attempt, name })
          await rollbackPrepared(databases.get(participant), gid)
        }
      }
    })
  } finally {
    lease.running.delete(attempt)
  }
}
