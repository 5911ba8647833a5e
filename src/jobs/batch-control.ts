import { retryFailures as askForRetry } from '../db/batch-failures.ts'
import { type BatchStatus, findBatchJob, moveBatchJob } from '../db/batch-jobs.ts'
import { WrongBatchStateError } from '../db/errors.ts'
import type { JobContext } from './context.ts'
import { unknownBatchJob } from './enqueue-batch.ts'

/**
 * What people do to a batch job. A run sees it between two chunks: a chunk that is under way commits. `force` does not
 * wait for the run, for one that hangs or whose worker is gone: the chunk that it may be in still commits, or not, and
 * position and name keep whoever comes later from doing it again.
 */
type Moves = Partial<Record<BatchStatus, BatchStatus>>

const moves = {
  pause: { queued: 'paused', running: 'pausing', pausing: 'pausing', paused: 'paused' },
  resume: { paused: 'queued', failed: 'queued', pausing: 'running', queued: 'queued', running: 'running' },
  cancel: {
    queued: 'cancelled',
    paused: 'cancelled',
    failed: 'cancelled',
    running: 'cancelling',
    pausing: 'cancelling',
    cancelling: 'cancelling',
    cancelled: 'cancelled',
  },
} satisfies Record<string, Moves>

const forced = {
  pause: { ...moves.pause, running: 'paused', pausing: 'paused' },
  cancel: { ...moves.cancel, running: 'cancelled', pausing: 'cancelled', cancelling: 'cancelled' },
} satisfies Record<string, Moves>

export type Force = { force?: boolean }

/** Paused jobs keep their position until somebody resumes them. Returns the state that the job is in now. */
export function pauseBatch(
  ctx: JobContext,
  jobId: string,
  { force = false }: Force = {},
): Promise<BatchStatus> {
  return control(ctx, jobId, 'paused', (force ? forced : moves).pause)
}

/** Goes on where it stands: what was paused, and what has failed. */
export function resumeBatch(ctx: JobContext, jobId: string): Promise<BatchStatus> {
  return control(ctx, jobId, 'resumed', moves.resume)
}

/** For good. What its chunks did stays. */
export function cancelBatch(
  ctx: JobContext,
  jobId: string,
  { force = false }: Force = {},
): Promise<BatchStatus> {
  return control(ctx, jobId, 'cancelled', (force ? forced : moves).cancel)
}

/** Has the rows that a job set aside tried again, each in a transaction of its own; returns how many there are. */
export async function retryBatchFailures(ctx: JobContext, jobId: string): Promise<number> {
  return ctx.databases.primary.transaction(async (tx) => {
    const asked = await askForRetry(tx, jobId)
    if (asked === 0 && !(await findBatchJob(tx, jobId))) throw unknownBatchJob(jobId)
    // A job that goes on comes to them at its end.
    if (asked > 0) await moveBatchJob(tx, jobId, { completed: 'queued', failed: 'queued' })
    return asked
  })
}

async function control(ctx: JobContext, jobId: string, verb: string, allowed: Moves): Promise<BatchStatus> {
  const { sql } = ctx.databases.primary
  const status = await moveBatchJob(sql, jobId, allowed)
  if (status !== undefined) {
    ctx.log.info({ jobId, status }, `batch job ${verb}`)
    return status
  }
  const job = await findBatchJob(sql, jobId)
  if (!job) throw unknownBatchJob(jobId)
  throw new WrongBatchStateError(`${jobId} is ${job.status} and cannot be ${verb}`)
}
