import { v7 as uuidv7 } from 'uuid'
import { type BatchJob, findBatchJob, insertBatchJob, setBatchStatus } from '../db/batch-jobs.ts'
import { appendBatchPosition, type BatchPosition, readBatchPosition } from '../db/batch-positions.ts'
import { FencedError, InvalidConfigError, NoSlotsError, UnknownOutcomeError } from '../db/errors.ts'
import { encodeJson, type Json } from '../db/json.ts'
import { messageOf } from '../db/message-of.ts'
import { appendEvents } from '../db/outbox.ts'
import { isConnectionLoss, isContention } from '../db/sqlstate.ts'
import { resolveForward, stageForward } from '../db/staged-transaction.ts'
import { newAttempt } from '../db/transaction-name.ts'
import type { Tx } from '../db/tx.ts'
import type { BatchDefinition } from './batch-definition.ts'
import type { JobContext } from './context.ts'
import { pause } from './pause.ts'
import { parseBySchema } from './schema.ts'

/**
 * Runs a batch job: chunk after chunk, each one staged transaction named `<jobId>_progress_<n>` that holds the chunk's
 * work and its new position. Nothing but the database has to agree, so a chunk in doubt is committed forward.
 *
 * The races, and what closes them:
 * 1. Killed between PREPARE and COMMIT PREPARED: the chunk is in doubt. The next run commits it before it reads the
 *    position.
 * 2. A PREPARE that arrives after the next run looked. Position and name are unique: one of the two fails (23505) or
 *    waits (55P03), and the run resolves and reads again.
 * 3. Two runs of one job (BullMQ delivers twice when a lock is lost). The same: each chunk commits once, whoever is
 *    late reads the position again.
 */
export type BatchOutcome = 'completed' | 'failed' | 'stopped'

export type BatchTiming = { maxFailures: number; backoffMs: number; maxBackoffMs: number }

const defaultTiming: BatchTiming = { maxFailures: 5, backoffMs: 50, maxBackoffMs: 30_000 }

export async function enqueueBatchJob(
  ctx: JobContext,
  definition: BatchDefinition,
  params: unknown,
  correlationId: string,
): Promise<{ jobId: string }> {
  const raw = JSON.parse(encodeJson(params ?? {}, `params of ${definition.name}`)) as Json
  await parseParams(definition, raw)
  const jobId = `${definition.name}-${uuidv7()}`
  await insertBatchJob(ctx.databases.primary.sql, {
    id: jobId,
    batch: definition.name,
    params: raw,
    correlationId,
  })
  return { jobId }
}

export async function runBatch(
  ctx: JobContext,
  definitions: ReadonlyMap<string, BatchDefinition>,
  jobId: string,
  signal: AbortSignal,
  timing: BatchTiming = defaultTiming,
): Promise<BatchOutcome> {
  const { primary } = ctx.databases
  const job = await findBatchJob(primary.sql, jobId)
  if (!job) throw new InvalidConfigError([`no batch job ${jobId} is recorded`])
  if (job.status === 'completed' || job.status === 'failed') return job.status
  if (job.status === 'cancelled') return 'stopped'
  const definition = definitions.get(job.batch)
  if (!definition) {
    throw new InvalidConfigError([
      `batch job ${jobId} is of the batch ${job.batch}, which this worker's config lacks`,
    ])
  }
  const params = await parseParams(definition, job.params)
  await ctx.lease.hold()
  await setBatchStatus(primary.sql, jobId, ['queued', 'running'], 'running')

  let reachedChunk = 0n
  let failure: unknown
  for (let failures = 0; !signal.aborted; ) {
    try {
      const position = await resolveAndRead(ctx, jobId)
      // Whatever failed, another run got further meanwhile: it failed because of that, and is no failure.
      if ((position?.n ?? 0n) > reachedChunk) failures = 0
      reachedChunk = position?.n ?? 0n
      if (failures >= timing.maxFailures) return await fail(ctx, jobId, failure)
      if (position?.last === true) {
        await setBatchStatus(primary.sql, jobId, ['running'], 'completed')
        ctx.log.info(
          { jobId, chunks: String(position.n), rows: String(position.rowsTotal) },
          'batch job completed',
        )
        return 'completed'
      }
      await runChunks(ctx, definition, job, params, position, signal, (n) => {
        failures = 0
        reachedChunk = n
      })
    } catch (error) {
      if (signal.aborted) break
      if (!isPassing(error)) failures++
      failure = error
      const waitMs = Math.random() * Math.min(timing.maxBackoffMs, timing.backoffMs * 2 ** (failures + 1))
      ctx.log.warn(
        { err: error, jobId, failures, waitMs: Math.round(waitMs) },
        'chunk not committed, trying again',
      )
      await pause(waitMs, signal)
    }
  }
  return 'stopped'
}

async function fail(ctx: JobContext, jobId: string, error: unknown): Promise<'failed'> {
  ctx.log.error({ err: error, jobId }, 'batch job failed')
  await setBatchStatus(ctx.databases.primary.sql, jobId, ['running'], 'failed', messageOf(error))
  return 'failed'
}

export type WaitOptions = { pollMs?: number; signal?: AbortSignal }

/** Waits until a job has ended, or until the signal aborts; returns the job as it is then. */
export async function waitForBatch(
  ctx: JobContext,
  jobId: string,
  { pollMs = 100, signal = new AbortController().signal }: WaitOptions = {},
): Promise<BatchJob> {
  for (;;) {
    const job = await findBatchJob(ctx.databases.primary.sql, jobId)
    if (!job) throw new InvalidConfigError([`no batch job ${jobId} is recorded`])
    if ((job.status !== 'queued' && job.status !== 'running') || signal.aborted) return job
    await pause(pollMs, signal)
  }
}

/** Commits what is in doubt of this job, then reads where it stands. */
async function resolveAndRead(ctx: JobContext, jobId: string): Promise<BatchPosition | undefined> {
  const { primary } = ctx.databases
  const resolved = await resolveForward(primary, ctx.installation, (name) =>
    name.startsWith(`${jobId}_progress_`),
  )
  for (const { name, attempt } of resolved)
    ctx.log.info({ name, attempt }, 'committed a chunk that was in doubt')
  return readBatchPosition(primary.sql, jobId, 0)
}

async function runChunks(
  ctx: JobContext,
  definition: BatchDefinition,
  job: BatchJob,
  params: unknown,
  from: BatchPosition | undefined,
  signal: AbortSignal,
  progressed: (n: bigint) => void,
): Promise<void> {
  let position = from ?? { n: 0n, cursor: null, rowsTotal: 0n, last: false }
  while (!position.last && !signal.aborted) {
    position = await runChunk(ctx, definition, job, params, position, signal)
    progressed(position.n)
  }
}

async function runChunk(
  ctx: JobContext,
  definition: BatchDefinition,
  job: BatchJob,
  params: unknown,
  before: BatchPosition,
  signal: AbortSignal,
): Promise<BatchPosition> {
  const n = before.n + 1n
  const name = chunkName(job.id, n)
  const attempt = newAttempt(ctx.lease.id)
  const log = ctx.log.child({ jobId: job.id, chunk: String(n) })
  const spec = {
    installation: ctx.installation,
    attempt,
    name,
  }
  const work = async (tx: Tx, send: (query: PromiseLike<unknown>) => void) => {
    const { rows, cursor, last } = await definition.source.read(
      tx,
      before.cursor,
      definition.chunkSize ?? 1000,
    )
    if (rows.length > 0) {
      const publish = (events: Parameters<typeof appendEvents>[1]) => appendEvents(tx, events, ctx.eventLimit)
      await definition.process(rows, { tx, params, jobId: job.id, chunk: n, publish, signal, log })
    }
    const after = { n, cursor, rowsTotal: before.rowsTotal + BigInt(rows.length), last }
    send(appendBatchPosition(tx, { jobId: job.id, range: 0, attempt, rows: rows.length, ...after }))
    return after
  }
  const after = await ctx.lease.slots.use(() => stageForward(ctx.databases.primary, spec, work))
  ctx.outboxWakeup.committed()
  return after
}

/** The name of a chunk's transaction. */
function chunkName(jobId: string, n: bigint): string {
  return `${jobId}_progress_${n}`
}

async function parseParams(definition: BatchDefinition, raw: Json): Promise<unknown> {
  if (!definition.params) return raw
  return parseBySchema(definition.params, raw, `params of ${definition.name}`)
}

/** Contention, fencing and a lost connection are nobody's failure: the run resolves, reads again and goes on. */
function isPassing(error: unknown): boolean {
  return (
    error instanceof FencedError ||
    error instanceof NoSlotsError ||
    error instanceof UnknownOutcomeError ||
    isContention(error) ||
    isConnectionLoss(error)
  )
}
