import { setTimeout as sleep } from 'node:timers/promises'
import { EscapedWorkError, FencedError, UnknownOutcomeError } from '../db/errors.ts'
import {
  type Claim,
  type ClaimAnswer,
  claimKey,
  claimSetting,
  completeKey,
  type Ended,
  type KeyId,
  releaseClaim,
} from '../db/idempotency-keys.ts'
import type { Json } from '../db/json.ts'
import { confirmReplicated } from '../db/replication.ts'
import { isConnectionLoss, isContention, SQLSTATE, sqlstateOf } from '../db/sqlstate.ts'
import { reached } from '../db/steps.ts'
import type { Tx } from '../db/tx.ts'
import { ClaimLease } from './claim-lease.ts'
import type { JobContext } from './context.ts'
import {
  type Call,
  checkCall,
  encodeResponse,
  type IdempotentOptions,
  type IdempotentResult,
  type IdempotentWork,
  inFlight,
  mismatch,
  named,
  wentOn,
} from './idempotent-call.ts'

export type { IdempotentOptions, IdempotentResult, IdempotentWork }

/** How long a row that somebody is changing is asked for again: for the length of a commit. */
const busyMs = 1_000
/** How long a lost COMMIT is asked for. */
const settleMs = 5_000
const firstPauseMs = 10
const longestPauseMs = 500

/**
 * Work that is done once for each idempotency key, in two commits:
 *
 *   claim       a statement of its own: the row appears, or is taken over, with a lease and a token
 *   work        BEGIN, the work, then in one flush: response and expiry into the row if its token is still ours, COMMIT
 *
 * The work's transaction is a plain one. Nothing outside the database has to agree with it, so nothing is won by handing
 * it over prepared: a crash before COMMIT leaves a claim whose lease runs out, a crash after it a response to replay. And
 * while it was prepared its row would be locked for as long as recovery needs, with every duplicate left in the dark.
 *
 * What must hold: over all calls with one key at most one transaction commits that did the work, until the key expires;
 * the response in the row is that transaction's; nobody replays what did not commit. It follows from one rule: the work
 * commits only together with an update of a row that is in flight under its own token. The rest (leases, renewal, release)
 * decides when somebody else may try, and can err without harm to that rule. The races:
 *
 * 1. Two claim at once. The primary key lets one row in; an expired or abandoned row is locked, looked at again under the
 *    lock, and gets its new token there. Who is not first reads, without waiting, what stands.
 * 2. A duplicate comes while the first works. The claim has been committed, so it is seen; the work's transaction touches
 *    the row only at its very end, so reading it never waits.
 * 3. The lease runs out while its owner still works (stopped, cut off). Another takes the row over with a higher token. The
 *    old owner's completion finds no row with its token and raises, so its COMMIT rolls back, business change included.
 *    Were the old one first, the other finds the row locked or completed. Both lock the one row: there is no in between.
 * 4. The answer to COMMIT is lost. The row is asked: completed with our token is our response. Otherwise the claim is
 *    released, and that is an answer as well: a completion holds the row's lock until its transaction has ended, so what
 *    can be deleted is not being completed, and a completion that the server comes to later finds no row. While it is
 *    locked we ask again; when the database cannot be asked, the outcome is unknown and the lease decides.
 * 5. The answer to the claim is lost. Nobody knows its token; the lease runs out.
 * 6. The work fails. The claim is released by its token, so that a retry may run at once, and only if it is still ours.
 * 7. The server crashes after a claim that had not reached its disk (it is committed asynchronously). The claim is gone or
 *    stands as it was before, so the completion finds no such row and nothing is committed; a completion that did commit
 *    brought everything before it to the disk, the sequence of the tokens included. The same token may be given twice only
 *    where both rows cannot be: the completion is for a row in flight with the same fingerprint, and there is one of those.
 * 8. The record expires while somebody completes, replays or sweeps it. Expiry is by the database's clock; a row in flight
 *    with a living lease never counts as expired, and whoever removes or takes over a row locks it first.
 * 9. Work that ends its own transaction would be committed without its response. The transaction carries the token in a
 *    local setting, the completion raises without it. What the work committed by itself stays, and it is told so.
 *
 * A claim has a lease of its own and not its process's (owner-lease.ts). That lease would live on with the process after 4,
 * 5 and a release that did not get through, and nobody could tell such a claim from one at work. Its own lease ends them
 * all by itself, and costs nothing where the work is shorter than a third of it.
 */
export async function idempotent<T extends Json>(
  ctx: JobContext,
  options: IdempotentOptions,
  work: IdempotentWork<T>,
): Promise<IdempotentResult<T>> {
  const call = checkCall(options)
  const started = performance.now()
  for (let pauseMs = firstPauseMs; ; pauseMs = Math.min(2 * pauseMs, longestPauseMs)) {
    const askedAt = performance.now()
    const answer = await ask(ctx, call)
    switch (answer.state) {
      case 'claimed': {
        const { scope, key, fingerprint } = call
        return await run(ctx, { scope, key, fingerprint, token: answer.token }, call, askedAt, work)
      }
      case 'completed':
        ctx.telemetry.idempotentCall('replayed')
        return { response: answer.response as T, replayed: true }
      case 'mismatch':
        ctx.telemetry.idempotentCall('mismatch')
        throw mismatch(call)
      default:
    }
    const patienceMs = answer.state === 'busy' ? Math.max(call.wait, busyMs) : call.wait
    const leftMs = started + patienceMs - performance.now()
    if (leftMs <= 0) {
      ctx.telemetry.idempotentCall('in_flight')
      throw inFlight(call, answer.state === 'in_flight' ? answer : { runningMs: busyMs, leaseMs: busyMs })
    }
    // Those who wait for the same key do not all ask at the same moment.
    await sleep(Math.min(leftMs, pauseMs * (0.5 + Math.random() / 2)))
  }
}

/** A lock that was not given in time is one more way of being busy. */
async function ask({ databases }: JobContext, call: Call): Promise<ClaimAnswer> {
  try {
    return await claimKey(databases.primary, call, call.fingerprint, call)
  } catch (error) {
    if (isContention(error)) return { state: 'busy' }
    throw error
  }
}

async function run<T extends Json>(
  ctx: JobContext,
  claim: Claim,
  call: Call,
  claimedFrom: number,
  work: IdempotentWork<T>,
): Promise<IdempotentResult<T>> {
  const { primary } = ctx.databases
  await reached('idempotency.claimed')
  const lease = new ClaimLease(primary, claim, call.leaseMs, claimedFrom, ctx.log)
  let endingSince: number | undefined
  try {
    const last = (tx: Tx, response: string) => {
      endingSince = performance.now()
      return completeKey(tx, claim, response, call.ttlMs)
    }
    const text = await primary.userTransaction({ setting: claimSetting(claim), last }, async (tx) => {
      const response = encodeResponse(await work(tx, { signal: lease.signal }), call)
      await reached('idempotency.worked')
      return response
    })
    await reached('idempotency.completed')
    ctx.telemetry.idempotentCall('executed')
    return { response: JSON.parse(text) as T, replayed: false }
  } catch (error) {
    ctx.telemetry.idempotentCall('failed')
    if (endingSince !== undefined && isConnectionLoss(error))
      return { response: (await settle(ctx, claim, call, endingSince, error)) as T, replayed: false }
    await releaseClaim(primary, claim).catch((err: unknown) =>
      ctx.log.warn({ err }, 'an idempotency key was not released; its lease runs out'),
    )
    throw endingSince === undefined ? error : explain(claim, error)
  } finally {
    lease.end()
  }
}

/** After a lost answer to COMMIT: the response if it committed, an error that says what happened if not. */
async function settle(
  ctx: JobContext,
  claim: Claim,
  { ttlMs }: Call,
  since: number,
  cause: unknown,
): Promise<Json> {
  for (let pauseMs = firstPauseMs; ; pauseMs = Math.min(2 * pauseMs, longestPauseMs)) {
    const ended = await askHowItEnded(ctx, claim)
    const lastedMs = performance.now() - since
    if (ended.state === 'completed') return ended.response
    if (ended.state === 'released') throw cause
    // Where a response is kept for less time than it took to ask, it may have been there.
    if (ended.state === 'lost' && lastedMs < ttlMs) throw fenced(claim, cause)
    if (ended.state === 'lost' || lastedMs > settleMs) {
      throw new UnknownOutcomeError(
        `${named(claim)}: the connection was lost at the commit and the database cannot tell what became of it; call again with the same key`,
        { cause },
      )
    }
    await sleep(pauseMs)
  }
}

async function askHowItEnded({ databases, log }: JobContext, claim: Claim): Promise<Ended> {
  try {
    const ended = await releaseClaim(databases.primary, claim)
    if (ended.state === 'completed') await confirmReplicated(databases.primary)
    return ended
  } catch (err) {
    log.warn({ err }, 'whether an idempotent call was committed could not be asked')
    return { state: 'busy' }
  }
}

/** Of an error at the end of the transaction, after which nothing was committed. */
function explain(claim: Claim, error: unknown): unknown {
  switch (sqlstateOf(error)) {
    case SQLSTATE.fenced:
      return fenced(claim, error)
    case SQLSTATE.escaped:
      return new EscapedWorkError(
        `the work of ${named(claim)} ended its own transaction (COMMIT or ROLLBACK); what it committed stays, and a retry runs again. Leave the end of the transaction to Holdfast`,
        { cause: error },
      )
    case SQLSTATE.inFailedTransaction:
      return wentOn(claim, error)
    default:
      return error
  }
}

function fenced(id: KeyId, cause: unknown): FencedError {
  return new FencedError(
    `${named(id)}: the claim was lost while the work ran, and nothing of it was committed; call again with the same key for the outcome`,
    { cause },
  )
}
