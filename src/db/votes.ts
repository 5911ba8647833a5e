import { createHash, randomBytes, timingSafeEqual } from 'node:crypto'
import { SQLSTATE, sqlstateOf } from './sqlstate.ts'
import type { Tx } from './tx.ts'

/** Table transaction_votes: one row for each service that a transaction awaits; a vote is written once. */
export type Choice = 'ready' | 'abort'
export type Ballot = { service: string; vote: Choice | null; reason: string | null; tokenHash: Buffer }

/** 256 random bits that let their holder vote for one service in one transaction. Only the hash is stored. */
export function newVoteToken(): { token: string; tokenHash: Buffer } {
  const token = randomBytes(32).toString('base64url')
  return { token, tokenHash: hashToken(token) }
}

export function isTokenOf(token: string, ballot: Ballot): boolean {
  return timingSafeEqual(hashToken(token), ballot.tokenHash)
}

function hashToken(token: string): Buffer {
  return createHash('sha256').update(token).digest()
}

/**
 * The status of an attempt, locked against every step of it until the caller's transaction ends: so a vote and the step
 * to `pending` see each other, whichever comes first.
 */
export async function lockAttempt(tx: Tx, attempt: string): Promise<string | undefined> {
  const [row] = await tx<{ status: string }[]>`
    select status from holdfast.distributed_transactions where attempt = ${attempt} for no key update`
  return row?.status
}

export async function readBallots(tx: Tx, attempt: string): Promise<Ballot[]> {
  return tx<Ballot[]>`
    select service, vote, reason, token_hash as "tokenHash" from holdfast.transaction_votes
    where attempt = ${attempt} order by service`
}

/** False: the service has voted otherwise. */
export async function castVote(
  tx: Tx,
  attempt: string,
  service: string,
  vote: Choice,
  reason: string | null,
  actor: string,
): Promise<boolean> {
  try {
    await tx.savepoint(async (inner) => {
      await inner`
        update holdfast.transaction_votes set vote = ${vote}, voted_at = coalesce(voted_at, clock_timestamp()),
          reason = coalesce(reason, ${reason}), actor = coalesce(actor, ${actor})
        where attempt = ${attempt} and service = ${service}`
    })
    return true
  } catch (error) {
    if (sqlstateOf(error) === SQLSTATE.fenced) return false
    throw error
  }
}
