import { CommittedError, UnknownJobError, UnknownTransactionError, WrongJobStateError } from '../db/errors.ts'
import {
  cancelJobRow,
  findJob,
  type Job,
  type JobStatus,
  requeueJob,
  settleCancelled,
  transactionOfJob,
} from '../db/jobs.ts'
import { SQLSTATE, sqlstateOf } from '../db/sqlstate.ts'
import type { JobContext } from './context.ts'
import { rollbackDistributed } from './coordinator.ts'
import { pause } from './pause.ts'

/** What people do to a job. */

/** Decides abort where a transaction of the job stands. False: it has committed, or is about to. */
export async function endTransactionOf(ctx: JobContext, jobId: string, reason: string): Promise<boolean> {
  try {
    await rollbackDistributed(ctx, transactionOfJob(jobId), reason)
    return true
  } catch (error) {
    if (error instanceof UnknownTransactionError) return true
    if (error instanceof CommittedError) return false
    throw error
  }
}

/**
 * Ends a job for good: what it staged is rolled back, what its effects did is compensated. One that has committed already
 * completes. Returns the status it is in now: `cancelling` while a run is still to let go of it.
 */
export async function cancelJob(ctx: JobContext, jobId: string): Promise<JobStatus> {
  const { sql } = ctx.databases.primary
  const status = await cancelJobRow(sql, jobId)
  if (status === undefined) throw refusal(await findJob(sql, jobId), jobId, 'cancelled')
  ctx.log.info({ jobId, status }, 'job cancelled by hand')
  if (status !== 'cancelling') return status
  await endTransactionOf(ctx, jobId, 'the job was cancelled')
  await settleCancelled(sql, jobId)
  return (await findJob(sql, jobId))?.status ?? status
}

/** Runs a job that has failed again, with all its attempts before it; one that waits, at once. Its history stays. */
export async function retryJob(ctx: JobContext, jobId: string): Promise<JobStatus> {
  const { sql } = ctx.databases.primary
  try {
    const status = await requeueJob(sql, jobId)
    if (status !== undefined) return status
  } catch (error) {
    if (sqlstateOf(error) !== SQLSTATE.uniqueViolation) throw error
    throw anotherIsOpen(jobId, { cause: error })
  }
  throw refusal(await findJob(sql, jobId), jobId, 'retried')
}

export function anotherIsOpen(jobId: string, options?: ErrorOptions): WrongJobStateError {
  return new WrongJobStateError(
    `another job with the deduplication key of ${jobId} is open; it runs instead`,
    options,
  )
}

/** Why a job cannot be cancelled or retried: its status, or that there is none. */
export function refusal(job: Job | undefined, jobId: string, verb: 'cancelled' | 'retried'): Error {
  return job ? new WrongJobStateError(`${jobId} is ${job.status} and cannot be ${verb}`) : unknownJob(jobId)
}

export function hasEnded({ status }: Pick<Job, 'status'>): boolean {
  return status === 'completed' || status === 'failed' || status === 'cancelled'
}

export type JobWaitOptions = { pollMs?: number; signal?: AbortSignal }

/** Waits until a job has ended, or until the signal aborts; returns it as it is then. */
export async function waitForJob(
  ctx: JobContext,
  jobId: string,
  { pollMs = 100, signal = new AbortController().signal }: JobWaitOptions = {},
): Promise<Job> {
  for (;;) {
    const job = await findJob(ctx.databases.primary.sql, jobId)
    if (!job) throw unknownJob(jobId)
    if (hasEnded(job) || signal.aborted) return job
    await pause(pollMs, signal)
  }
}

export function unknownJob(jobId: string): UnknownJobError {
  return new UnknownJobError(`no job ${jobId} is recorded; \`holdfast job list\` shows them`)
}
