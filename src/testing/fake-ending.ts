import {
  CommittedError,
  NameInUseError,
  NotPreparedError,
  RolledBackError,
  VotesOutstandingError,
} from '../db/errors.ts'
import { maxCompensationFailures, whyGivenUp } from '../jobs/compensate.ts'
import type { Progress } from '../jobs/finish.ts'
import { type AbortCause, judge } from '../jobs/verdict.ts'
import type { FakeContext } from './fake-context.ts'
import { type FakeTransaction, move } from './fake-transactions.ts'

/** How an attempt ends: committed, rolled back, or past its deadline; and the compensation after that. */
export function commit(fake: FakeContext, name: string): Progress<'committed' | 'committing'> {
  const row = fake.transactions.get(name)
  const missing = row.awaits.filter((service) => row.votes[service]?.vote === null)
  if (row.status === 'pending' && missing.length > 0) {
    throw new VotesOutstandingError(
      `${name} waits for ${missing.join(', ')}: the last ready vote commits it. Roll it back if they will not come`,
    )
  }
  if (row.status === 'pending' && row.owner !== null) {
    throw new NameInUseError(
      `a live run is in the effects of ${name}; it commits by itself when they succeed`,
    )
  }
  decideCommit(row)
  if (row.status === 'committed') return { state: row.status, ...allOf(row) }
  if (row.status === 'started') {
    throw new NotPreparedError(
      `${name} is not prepared yet: its work is still running. Wait for beginDistributed`,
    )
  }
  throw new RolledBackError(`${name} was rolled back (${row.reason}) and cannot be committed`)
}

export async function rollback(
  fake: FakeContext,
  name: string,
  reason: string,
): Promise<Progress<'rolled_back' | 'rolling_back'>> {
  const row = fake.transactions.get(name)
  if (row.decision === 'commit') {
    throw new CommittedError(
      `${name} was committed and cannot be rolled back; undo it with new work of its own`,
    )
  }
  await abort(fake, row, 'caller', reason)
  return { state: 'rolled_back', ...allOf(row) }
}

/** What recovery does at the deadline, by the product's own verdict; also another try at a compensation that is due. */
export async function expire(fake: FakeContext, name: string): Promise<void> {
  const row = fake.transactions.get(name)
  if (await isHandedOn(fake, row)) return
  row.deadline = new Date(Math.min(Date.now() - 1, row.deadline.getTime()))
  fake.runs.get(row.attempt)?.limit.abort(new Error('the deadline is near'))
  const gid = row.status === 'pending' ? 'listed' : 'absent'
  const participants = row.participants.map((p) => ({ name: p, gid, marker: undefined }) as const)
  const verdict = judge({ status: row.status, running: row.owner !== null, pastDeadline: true, participants })
  if (verdict.act === 'abort') await abort(fake, row, verdict.cause, verdict.reason, 'clean-up')
  else await compensate(fake, row)
}

/** A job whose run died goes on with what is pending; nobody is in it now, so nobody is late. */
async function isHandedOn(fake: FakeContext, { status, owner, operation, name }: FakeTransaction) {
  if (status !== 'pending' || owner !== null) return false
  return (await fake.operations.get(operation ?? '')?.resumes?.(name)) === true
}

/** Commits what is pending and not decided. */
export function decideCommit(row: FakeTransaction, fields: Partial<FakeTransaction> = {}): void {
  move(row, 'decide-commit', { ...fields, decision: 'commit' })
  move(row, 'all-committed', { owner: null })
}

/** Aborts what is not decided, and compensates it. */
export async function abort(
  fake: FakeContext,
  row: FakeTransaction,
  abortCause: AbortCause,
  reason: string,
  end: 'all-fenced' | 'clean-up' = 'all-fenced',
): Promise<void> {
  if (!move(row, 'decide-abort', { decision: 'abort', abortCause, reason })) return
  move(row, end)
  await compensate(fake, row)
}

/**
 * Runs the compensation that is due, unless a run is still at its effects: it comes back here. One that fails, or that
 * nobody knows since a crash, stays due; after so many failures it is given up.
 */
export async function compensate(fake: FakeContext, row: FakeTransaction): Promise<void> {
  const operation = fake.operations.get(row.operation ?? '')
  if (row.compensation !== 'due' || !operation?.compensate || fake.runs.has(row.attempt)) return
  const { name, attempt, staged, metadata, reason } = row
  const idempotencyKey = `${attempt}:compensate`
  const { signal } = new AbortController()
  const { log } = fake
  try {
    await operation.compensate({ name, attempt, staged, metadata, reason, idempotencyKey, signal, log })
    row.compensation = 'done'
    row.history.push('compensated')
    row.compensationError = undefined
  } catch (error) {
    row.compensationError = error
    row.history.push('compensation_failed')
    const failures = row.history.filter((event) => event === 'compensation_failed').length
    if (failures < maxCompensationFailures) return
    row.compensation = 'failed'
    row.quarantine = whyGivenUp(failures, error)
    row.history.push('requires_manual_intervention')
  }
}

function allOf({ participants: { length } }: FakeTransaction): { finished: number; of: number } {
  return { finished: length, of: length }
}
