import {
  InvalidConfigError,
  NotAllowedError,
  RolledBackError,
  UnknownParticipantError,
  VoteConflictError,
} from '../db/errors.ts'
import type { Choice } from '../db/votes.ts'
import type { VoteOptions, VoteResult } from '../jobs/vote.ts'
import type { FakeContext } from './fake-context.ts'
import { abort, decideCommit } from './fake-ending.ts'
import type { FakeTransaction } from './fake-transactions.ts'

/** Records a vote, once. The last `ready` commits, the first `abort` rolls back; what comes early waits for `pending`. */
export async function castVote(
  fake: FakeContext,
  name: string,
  service: string,
  choice: Choice,
  { reason, token }: VoteOptions = {},
): Promise<VoteResult> {
  const row = fake.transactions.get(name)
  if (choice !== 'ready' && choice !== 'abort')
    throw new InvalidConfigError([`a vote is 'ready' or 'abort', not ${JSON.stringify(choice)}`])
  const ballot = row.votes[service]
  if (!ballot) {
    throw new UnknownParticipantError(
      `${name} does not wait for ${service}; it waits for ${row.awaits.join(', ') || 'nobody'}`,
    )
  }
  if (token !== undefined && token !== fake.tokens.get(row.attempt)?.[service])
    throw new NotAllowedError(`this token is not the one for ${service} in ${name}`)
  if (ballot.vote !== null && ballot.vote !== choice)
    throw new VoteConflictError(`${service} has voted ${ballot.vote} on ${name} already; a vote is final`)
  if (ballot.vote === null && row.decision === null) {
    row.votes[service] = { vote: choice, reason: reason ?? null }
    row.history.push('voted')
    if (row.status === 'pending') await decideByVotes(fake, row)
  }
  const { status } = row
  const state = status === 'cleaned_up' ? 'rolled_back' : status
  if (row.decision === 'abort' && choice === 'ready') {
    throw new RolledBackError(
      `${name} was rolled back (${row.reason}); what ${service} made ready has to be undone there`,
    )
  }
  return { state, votes: { ready: readyVotes(row).length, of: row.awaits.length } }
}

export async function decideByVotes(fake: FakeContext, row: FakeTransaction): Promise<void> {
  const against = Object.entries(row.votes).filter(([, { vote }]) => vote === 'abort')
  if (against.length > 0) {
    const reasons = against.map(
      ([service, { reason }]) => `${service} voted abort${reason === null ? '' : `: ${reason}`}`,
    )
    await abort(fake, row, 'vote', reasons.join('; '))
  } else if (row.awaits.length > 0 && readyVotes(row).length === row.awaits.length) {
    decideCommit(row, { reason: 'all voted ready' })
  }
}

function readyVotes(row: FakeTransaction): unknown[] {
  return Object.values(row.votes).filter(({ vote }) => vote === 'ready')
}
