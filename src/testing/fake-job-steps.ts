import { deferred } from '../db/deferred.ts'
import { type Job, type JobStatus, keptErrors, maxMessage } from '../db/jobs.ts'
import type { Json } from '../db/json.ts'
import { messageOf } from '../db/message-of.ts'
import { sqlstateOf } from '../db/sqlstate.ts'
import { hasEnded } from '../jobs/job-control.ts'
import { type FakeJobRow, nextTurn } from './fake-job-row.ts'

/** What can happen to a job, each as one statement does it in the real table. */

/** Its delay or its pause is over. */
export function comeDue(row: FakeJobRow): void {
  row.waits = false
  if (row.job.runAt.getTime() > Date.now()) row.job.runAt = new Date()
}

/** Makes a new run of what is queued, or of what a run has died in. */
export function claim(row: FakeJobRow): { run: number; abandoned: boolean; signal: AbortSignal } {
  const abandoned = row.job.status === 'running'
  if (abandoned) row.deferrals += 1
  row.run += 1
  const revoke = new AbortController()
  row.revoke = revoke
  move(row, row.job.status === 'queued' ? 'running' : row.job.status, {
    startedAt: row.job.startedAt ?? new Date(),
  })
  return { run: row.run, abandoned, signal: revoke.signal }
}

export function complete(row: FakeJobRow, result: Json): void {
  row.revoke = undefined
  move(row, 'completed', { result })
}

/** Gives it back, for a reason that is not its own. */
export function defer(row: FakeJobRow, waitMs: number, counts: boolean): void {
  row.revoke = undefined
  if (counts) row.deferrals += 1
  row.waits = waitMs > 0
  move(row, row.job.status === 'running' ? 'queued' : row.job.status, { runAt: after(waitMs) })
}

/** Charges an attempt. A cancel that came meanwhile wins; `stands`: its transaction is not proved aborted. */
export function fail(
  row: FakeJobRow,
  error: unknown,
  next: { waitMs: number } | 'give-up',
  stands: boolean,
): void {
  const attempts = row.job.attempts + 1
  const failure = {
    message: messageOf(error).slice(0, maxMessage),
    sqlstate: sqlstateOf(error) ?? null,
    at: new Date().toISOString(),
    attempt: attempts,
  }
  const waitMs = next === 'give-up' ? 0 : next.waitMs
  const errors = [...row.job.errors, failure].slice(-keptErrors)
  row.revoke = undefined
  row.deferrals = 0
  row.waits = waitMs > 0
  const runAt = next === 'give-up' ? row.job.runAt : after(waitMs)
  if (row.job.status === 'cancelling')
    move(row, stands ? 'cancelling' : 'cancelled', { attempts, errors, runAt })
  else move(row, next === 'give-up' ? 'failed' : 'queued', { attempts, errors, runAt })
}

/** Asks for a cancel; the status after it, or undefined where the job has completed. */
export function cancel(row: FakeJobRow, stands: boolean): JobStatus | undefined {
  const { status, finishedAt } = row.job
  if (status === 'completed') return undefined
  if (status === 'failed' || status === 'cancelled') move(row, 'cancelled', { finishedAt })
  else move(row, status === 'queued' && !stands ? 'cancelled' : 'cancelling')
  return row.job.status
}

/** Makes `cancelled` of what nobody runs, the run that calls this aside, and of which no transaction stands. */
export function settleCancelled(row: FakeJobRow, stands: boolean, run?: number): boolean {
  if (row.job.status !== 'cancelling' || stands) return false
  if (row.revoke !== undefined && row.run !== run) return false
  row.revoke = undefined
  move(row, 'cancelled')
  return true
}

/** Makes it due, with all its attempts before it; undefined where it is neither failed nor queued. */
export function requeue(row: FakeJobRow): JobStatus | undefined {
  if (row.job.status !== 'failed' && row.job.status !== 'queued') return undefined
  if (row.job.status === 'failed') row.attemptsBefore = row.job.attempts
  row.deferrals = 0
  row.waits = false
  return move(row, 'queued', { runAt: new Date(), finishedAt: null })
}

/** `finishedAt` of what has ended: now, unless it is given. */
function move(row: FakeJobRow, status: JobStatus, fields: Partial<Job> = {}): JobStatus {
  const hadEnded = hasEnded(row.job)
  Object.assign(row.job, { status }, fields)
  if (fields.runAt !== undefined) row.turn = nextTurn()
  if (hasEnded(row.job)) {
    if (fields.finishedAt === undefined) row.job.finishedAt = new Date()
    row.ended.resolve()
  } else if (hadEnded) row.ended = deferred<void>()
  return status
}

function after(ms: number): Date {
  return new Date(Date.now() + ms)
}
