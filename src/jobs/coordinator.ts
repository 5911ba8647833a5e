import type { Moved, TransitionFields } from '../db/attempts.ts'
import {
  type DistributedTransaction,
  findByAttempt,
  findByName,
  ownerLives,
} from '../db/distributed-transactions.ts'
import {
  CommittedError,
  NameInUseError,
  NotAllowedError,
  NotPreparedError,
  RolledBackError,
  UnknownOutcomeError,
  UnknownTransactionError,
  VotesOutstandingError,
} from '../db/errors.ts'
import { messageOf } from '../db/message-of.ts'
import { SQLSTATE, sqlstateOf } from '../db/sqlstate.ts'
import { reached } from '../db/steps.ts'
import { checkTransactionName } from '../db/transaction-name.ts'
import { readBallots } from '../db/votes.ts'
import type { JobContext } from './context.ts'
import { tally } from './decide-by-votes.ts'
import { driveAbort, driveCommit, driveOwnCommit, type Progress } from './finish.ts'
import { move, type Only } from './move.ts'
import { traced } from './tracing.ts'

/**
 * Ending a distributed transaction by its name.
 *
 * commit:   decision by compare-and-set from `pending`, durable before any COMMIT PREPARED.
 * rollback: decision by compare-and-set, then every participant is rolled back and fenced.
 *
 * Whoever loses a compare-and-set touches no gid, but reads the row again and does what it says.
 */

/**
 * Commits a pending transaction everywhere. `committing` means decided but not finished on all participants yet:
 * recovery finishes it. Calling it again is harmless.
 */
export async function commitDistributed(
  ctx: JobContext,
  name: string,
): Promise<Progress<'committed' | 'committing'>> {
  let row = await find(ctx, name)
  return traced('holdfast.commit', row, async () => {
    if (row.status === 'pending') {
      if (row.awaits.length > 0) await checkVotes(ctx, row)
      if (await ownerLives(ctx.databases.primary.sql, row.attempt)) {
        throw new NameInUseError(
          `a live run is in the effects of ${name}; it commits by itself when they succeed`,
        )
      }
      const own = await decide(ctx, row, 'decide-commit', { decision: 'commit' })
      await reached('commit.decided')
      if (own) return driveOwnCommit(ctx, row)
      row = await findAttempt(ctx, row)
    }
    switch (row.status) {
      case 'committed':
        return { state: 'committed', finished: row.participants.length, of: row.participants.length }
      case 'committing':
        return driveCommit(ctx, row)
      case 'started':
      case 'pending':
        throw new NotPreparedError(
          `${name} is not prepared yet: its work is still running. Wait for beginDistributed`,
        )
      default:
        throw new RolledBackError(
          `${name} was rolled back (${row.reason ?? 'no reason recorded'}) and cannot be committed`,
        )
    }
  })
}

/** Rolls back a transaction that was not committed. `rolling_back` means decided; recovery finishes it. */
export async function rollbackDistributed(
  ctx: JobContext,
  name: string,
  reason: string,
): Promise<Progress<'rolled_back' | 'rolling_back'>> {
  let row = await find(ctx, name)
  return traced('holdfast.rollback', row, async () => {
    if (row.status === 'pending' || row.status === 'started') {
      await decide(ctx, row, 'decide-abort', { decision: 'abort', abortCause: 'caller', reason })
      await reached('rollback.decided')
      row = await findAttempt(ctx, row)
    }
    switch (row.status) {
      case 'rolled_back':
      case 'cleaned_up':
        return { state: 'rolled_back', finished: row.participants.length, of: row.participants.length }
      case 'rolling_back':
        return driveAbort(ctx, row)
      default:
        throw new CommittedError(
          `${name} was committed and cannot be rolled back; undo it with new work of its own`,
        )
    }
  })
}

async function checkVotes(ctx: JobContext, row: DistributedTransaction): Promise<void> {
  const ballots = await ctx.databases.primary.transaction((tx) => readBallots(tx, row.attempt))
  const { ready, of } = tally(ballots)
  if (ready === of) return
  const missing = ballots.filter((b) => b.vote === null).map((b) => b.service)
  throw new VotesOutstandingError(
    `${row.name} waits for ${missing.join(', ')}: the last ready vote commits it. Roll it back if they will not come`,
  )
}

/**
 * What was moved when the decision was taken here; then it is durable. One whose answer was lost is not repeated blindly: the
 * row is read again by the caller's next step.
 */
export async function decide(
  ctx: JobContext,
  { name, attempt }: { name: string; attempt: string },
  event: 'decide-commit' | 'decide-abort',
  fields: TransitionFields,
  only: Only = {},
): Promise<Moved | undefined> {
  try {
    return await traced('holdfast.decide', { name, attempt }, () =>
      deciding(name, move(ctx, attempt, event, fields, only)),
    )
  } catch (error) {
    if (error instanceof NotAllowedError) throw error
    throw new UnknownOutcomeError(
      `whether the decision on ${name} was recorded is not known; call again to find out`,
      { cause: error },
    )
  }
}

/** Says so where this login is not among those who may decide. */
export async function deciding<T>(name: string, step: Promise<T>): Promise<T> {
  try {
    return await step
  } catch (error) {
    if (sqlstateOf(error) !== SQLSTATE.insufficientPrivilege) throw error
    throw new NotAllowedError(`this login may not finish ${name}: ${messageOf(error)}`, { cause: error })
  }
}

async function find(ctx: JobContext, name: string): Promise<DistributedTransaction> {
  checkTransactionName(name)
  const row = await findByName(ctx.databases.primary.sql, name)
  if (!row) throw new UnknownTransactionError(`no transaction named ${name} is recorded; begin it first`)
  return row
}

async function findAttempt(
  ctx: JobContext,
  { name, attempt }: DistributedTransaction,
): Promise<DistributedTransaction> {
  const row = await findByAttempt(ctx.databases.primary.sql, attempt)
  if (!row) throw new UnknownTransactionError(`${name} was removed by retention`)
  return row
}
