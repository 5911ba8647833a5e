import type { DistributedTransaction } from '../db/distributed-transactions.ts'
import { findByAttempt, findByName } from '../db/distributed-transactions.ts'
import {
  InvalidConfigError,
  NotAllowedError,
  RolledBackError,
  UnknownParticipantError,
  UnknownTransactionError,
  VoteConflictError,
} from '../db/errors.ts'
import { recordEvent } from '../db/transaction-events.ts'
import { checkTransactionName } from '../db/transaction-name.ts'
import { type Ballot, type Choice, castVote, isTokenOf, lockAttempt, readBallots } from '../db/votes.ts'
import type { JobContext } from './context.ts'
import { deciding } from './coordinator.ts'
import { decideByVotes, tally } from './decide-by-votes.ts'
import { driveAbort, driveCommit } from './finish.ts'
import { traced } from './tracing.ts'

/**
 * Voting: services that only say whether they are ready. A vote is written once, under the lock of the attempt's row, so
 * that it and the step to `pending` see each other; the last `ready` or the first `abort` decides in the same transaction.
 */
export type VoteOptions = {
  reason?: string
  /** the token that beginDistributed gave for this service; checked when given. Ask for it from callers you do not trust */
  token?: string | undefined
}

export type VoteResult = {
  state: 'started' | 'pending' | 'committing' | 'committed' | 'rolling_back' | 'rolled_back'
  votes: { ready: number; of: number }
}

/**
 * Throws UnknownTransactionError, UnknownParticipantError (the service is not awaited), NotAllowedError (wrong token),
 * VoteConflictError (it has voted otherwise), RolledBackError (`ready` for what was rolled back already: the service
 * undoes its own part). The same vote again changes nothing.
 */
export async function vote(
  ctx: JobContext,
  name: string,
  service: string,
  choice: Choice,
  options: VoteOptions = {},
): Promise<VoteResult> {
  checkTransactionName(name)
  if (choice !== 'ready' && choice !== 'abort')
    throw new InvalidConfigError([`a vote is 'ready' or 'abort', not ${JSON.stringify(choice)}`])
  const { primary } = ctx.databases
  const row = await findByName(primary.sql, name)
  if (!row) throw new UnknownTransactionError(`no transaction named ${name} is recorded; begin it first`)
  return traced('holdfast.decide', row, async () => {
    const steps = await deciding(
      name,
      primary.transaction(async (tx) => {
        const status = await lockAttempt(tx, row.attempt)
        const ballots = await readBallots(tx, row.attempt)
        const before = checkBallot(row, ballots, service, options.token)
        if (before.vote !== null && before.vote !== choice) {
          throw new VoteConflictError(
            `${service} has voted ${before.vote} on ${name} already; a vote is final`,
          )
        }
        if (before.vote === choice || (status !== 'started' && status !== 'pending')) return undefined
        await castVote(tx, row.attempt, service, choice, options.reason ?? null, ctx.lease.id)
        await recordEvent(tx, {
          event: 'voted',
          name,
          attempt: row.attempt,
          actor: `service ${service}`,
          correlationId: row.correlationId,
          detail: { service, vote: choice, reason: options.reason ?? null },
        })
        return status === 'pending'
          ? decideByVotes(ctx, tx, row.attempt, await readBallots(tx, row.attempt))
          : undefined
      }),
    )
    steps?.report()
    return standing(ctx, row.attempt, service, choice)
  })
}

function checkBallot(
  row: DistributedTransaction,
  ballots: readonly Ballot[],
  service: string,
  token: string | undefined,
): Ballot {
  const ballot = ballots.find((b) => b.service === service)
  if (!ballot) {
    throw new UnknownParticipantError(
      `${row.name} does not wait for ${service}; it waits for ${row.awaits.join(', ') || 'nobody'}`,
    )
  }
  if (token !== undefined && !isTokenOf(token, ballot))
    throw new NotAllowedError(`this token is not the one for ${service} in ${row.name}`)
  return ballot
}

/** Where the attempt stands after the vote; what was decided is driven. */
async function standing(
  ctx: JobContext,
  attempt: string,
  service: string,
  choice: Choice,
): Promise<VoteResult> {
  const { primary } = ctx.databases
  const row = await findByAttempt(primary.sql, attempt)
  if (!row) throw new UnknownTransactionError('the transaction was removed by retention')
  const { ready, of } = tally(await primary.transaction((tx) => readBallots(tx, attempt)))
  const votes = { ready, of }
  switch (row.status) {
    case 'started':
    case 'pending':
    case 'committed':
      return { state: row.status, votes }
    case 'committing':
      return { state: (await driveCommit(ctx, row)).state, votes }
    default: {
      const state = row.status === 'rolling_back' ? (await driveAbort(ctx, row)).state : 'rolled_back'
      if (choice === 'abort') return { state, votes }
      throw new RolledBackError(
        `${row.name} was rolled back (${row.reason ?? 'no reason recorded'}); what ${service} made ready has to be undone there`,
      )
    }
  }
}
