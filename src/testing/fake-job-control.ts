import { type Job, type JobStatus, transactionOfJob } from '../db/jobs.ts'
import { checkedJob, definitionOf, type Enqueued, type EnqueueOptions } from '../jobs/enqueue-job.ts'
import { anotherIsOpen, hasEnded, type JobWaitOptions, refusal, unknownJob } from '../jobs/job-control.ts'
import { untilAborted } from '../jobs/until-aborted.ts'
import type { FakeContext } from './fake-context.ts'
import { abort } from './fake-ending.ts'
import { type FakeJobRow, viewOf } from './fake-job-row.ts'
import { cancel, requeue, settleCancelled } from './fake-job-steps.ts'
import { isAborted } from './fake-unit.ts'

/** What people do to a job. */

export async function enqueue(
  fake: FakeContext,
  job: string | { readonly name: string },
  input: unknown,
  options: EnqueueOptions = {},
): Promise<Enqueued> {
  const definition = definitionOf(fake.jobs.definitions, job)
  return { jobId: await fake.jobs.insertIn(options.tx, await checkedJob(definition, input, options)) }
}

export async function cancelJob(fake: FakeContext, jobId: string): Promise<JobStatus> {
  const row = fake.jobs.find(jobId)
  if (!row) throw unknownJob(jobId)
  const status = cancel(row, stands(fake, row))
  if (status === undefined) throw refusal(row.job, jobId, 'cancelled')
  if (status !== 'cancelling') return status
  await endTransactionOf(fake, row, 'the job was cancelled')
  row.revoke?.abort(new Error('the job was cancelled, or another process has it'))
  settleCancelled(row, stands(fake, row))
  return row.job.status
}

export async function retryJob(fake: FakeContext, jobId: string): Promise<JobStatus> {
  const row = fake.jobs.find(jobId)
  if (row?.job.status === 'failed' && fake.jobs.findOpen(row.job.name, row.job.deduplication, row))
    throw anotherIsOpen(jobId)
  const status = row && requeue(row)
  if (status === undefined) throw refusal(row?.job, jobId, 'retried')
  return status
}

/** Without polling: it is told. */
export async function waitForJob(
  fake: FakeContext,
  job: string | Enqueued,
  { signal = new AbortController().signal }: JobWaitOptions = {},
): Promise<Job> {
  const jobId = typeof job === 'string' ? job : job.jobId
  for (;;) {
    const row = fake.jobs.find(jobId)
    if (!row) throw unknownJob(jobId)
    if (hasEnded(row.job) || signal.aborted) return viewOf(row)
    await untilAborted(row.ended.promise, signal)
  }
}

/** Decides abort where a transaction of the job stands. False: it has committed. */
export async function endTransactionOf(
  fake: FakeContext,
  { job }: FakeJobRow,
  reason: string,
): Promise<boolean> {
  const row = fake.transactions.last(transactionOfJob(job.id))
  if (row?.decision === 'commit') return false
  if (row) await abort(fake, row, 'caller', reason)
  return true
}

/** Whether a transaction of it is not proved aborted. */
export function stands(fake: FakeContext, { job }: FakeJobRow): boolean {
  const row = fake.transactions.last(transactionOfJob(job.id))
  return row !== undefined && !isAborted(row)
}
