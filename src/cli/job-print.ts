import type { DistributedTransaction } from '../db/distributed-transactions.ts'
import type { Job } from '../db/jobs.ts'
import { age, section } from './table.ts'

export type JobTransaction = Pick<
  DistributedTransaction,
  'attempt' | 'status' | 'compensation' | 'reason' | 'quarantine' | 'participants'
>

/** How `holdfast job` shows things to humans. */
export function describeJobs(jobs: readonly Job[], now: number): string {
  if (jobs.length === 0) return 'no job\n'
  return section(
    'jobs',
    ['job', 'state', 'failures', 'enqueued', 'what'],
    jobs.map((job) => [
      job.id,
      job.status,
      String(job.attempts),
      `${age((now - job.createdAt.getTime()) / 1_000)} ago`,
      whatOf(job, now),
    ]),
  )
}

export function describeJob(job: Job, transactions: readonly JobTransaction[], now: number): string {
  const parts = [
    describeJobs([job], now),
    job.schedule === null || job.scheduledFor === null
      ? ''
      : `made by the schedule ${job.schedule} for ${job.scheduledFor.toISOString()}\n`,
    `input: ${JSON.stringify(job.input)}\n`,
    job.result === null ? '' : `result: ${JSON.stringify(job.result)}\n`,
    section(
      'attempts that failed',
      ['attempt', 'at', 'SQLSTATE', 'error'],
      job.errors.map((e) => [String(e.attempt), e.at, e.sqlstate ?? '-', short(e.message)]),
    ),
    section(
      'its transactions',
      ['attempt', 'state', 'databases', 'compensation', 'reason'],
      transactions.map((t) => [
        t.attempt,
        t.quarantine === null ? t.status : 'requires_manual_intervention',
        t.participants.join(', '),
        t.compensation,
        short(t.quarantine ?? t.reason ?? '-'),
      ]),
    ),
    advice(job, now),
  ]
  return parts.filter((part) => part !== '').join('\n')
}

function whatOf({ status, runAt, errors }: Job, now: number): string {
  const waitMs = runAt.getTime() - now
  const last = errors.at(-1)
  if (status === 'queued' && waitMs > 0)
    return `in ${age(waitMs / 1_000)}${last ? `, after: ${short(last.message)}` : ''}`
  return status === 'failed' && last ? short(last.message) : '-'
}

function advice({ id, name, status, runAt }: Job, now: number): string {
  if (status === 'queued' && runAt.getTime() <= now)
    return `due: a worker runs it whose config has the job ${name}, on its queue\n`
  if (status === 'failed') return `mend what the error names, then: holdfast job retry ${id}\n`
  if (status === 'cancelling') return 'its run lets go of it, or a worker does once the run is over\n'
  return ''
}

function short(text: string): string {
  return text.replaceAll(/\s+/g, ' ').slice(0, 120)
}
