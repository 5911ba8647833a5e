import { decideByHand, recordByHand, recordCompensated, releaseQuarantine } from '../db/by-hand.ts'
import { listUnsettledCompensations } from '../db/compensations.ts'
import { type DistributedTransaction, findByAttempt, findByName } from '../db/distributed-transactions.ts'
import {
  CommittedError,
  InvalidConfigError,
  NameInUseError,
  NotAllowedError,
  NotPreparedError,
  RolledBackError,
  UnknownOutcomeError,
  UnknownTransactionError,
  VotesOutstandingError,
} from '../db/errors.ts'
import type { Json } from '../db/json.ts'
import { readMarker } from '../db/markers.ts'
import { messageOf } from '../db/message-of.ts'
import { isInRecovery } from '../db/prepared.ts'
import { isPassing, SQLSTATE, sqlstateOf } from '../db/sqlstate.ts'
import { confirmTimeline, type Timeline } from '../db/timelines.ts'
import { checkTransactionName, nameInGid, ownerOf } from '../db/transaction-name.ts'
import { readBallots } from '../db/votes.ts'
import { liveOwners } from '../db/workers.ts'
import type { JobContext } from './context.ts'
import { driveAbort, driveCommit } from './finish.ts'
import { findInDoubt, type InDoubt } from './listing.ts'
import { liveOwnersOf, recoverOrphan } from './orphans.ts'
import { type Evidence, outcome } from './outcome.ts'
import { targetsOf } from './page-name.ts'

/**
 * An operator's hand. It decides what nobody decided, through audited functions of the database that an application's
 * role may not call, and never against a decision, a marker, a vote or a policy.
 */
export type ByHand = {
  decision: 'commit' | 'abort'
  /** who, as the operator says; the login is recorded beside it */
  who: string
  why: string
  /** only say what would happen */
  dryRun?: boolean
}

export type ByHandResult = {
  name: string
  attempt: string
  decision: 'commit' | 'abort'
  state: 'would decide' | 'would finish' | 'committed' | 'committing' | 'rolled_back' | 'rolling_back'
  /** set when it could not be finished and an operator has to look */
  quarantine: string | null
  /** what was looked at */
  evidence: Json
}

/**
 * Throws UnknownTransactionError, CommittedError and RolledBackError (decided or marked otherwise), NotPreparedError
 * (commit of what is not prepared everywhere), NameInUseError (a live run is at it), VotesOutstandingError,
 * UnknownOutcomeError (a database that has to be asked cannot be), NotAllowedError (this login is no operator).
 */
export async function finishByHand(ctx: JobContext, name: string, hand: ByHand): Promise<ByHandResult> {
  checkAsked(name, hand.why)
  const { sql } = ctx.databases.primary
  const row = await findByName(sql, name)
  if (!row) return finishOrphansByHand(ctx, name, hand)
  const { attempt } = row
  const { evidence } = await outcome(ctx, name)
  if (evidence.attempt !== attempt)
    throw new UnknownTransactionError(`${name} was begun anew meanwhile; look again`)
  const seen = { name, attempt, decision: hand.decision, evidence: evidence as unknown as Json }
  refuseContradiction(name, row.decision, hand.decision)
  refuseMarkers(name, evidence, hand.decision)
  if (row.decision === null) await checkDecidable(ctx, row, evidence, hand.decision)
  else if (row.status !== 'committing' && row.status !== 'rolling_back')
    return { ...seen, state: ended(hand.decision), quarantine: row.quarantine }
  if (hand.dryRun === true) {
    const state = row.decision === null ? 'would decide' : 'would finish'
    return { ...seen, state, quarantine: row.quarantine }
  }
  // False where somebody else was faster: the row that is read again says what holds.
  if (row.decision === null) await allowed(name, () => decideByHand(sql, attempt, hand, seen.evidence))
  else if (row.quarantine !== null) await allowed(name, () => releaseQuarantine(sql, attempt, hand))
  const decided = await findByAttempt(sql, attempt)
  refuseContradiction(name, decided?.decision ?? null, hand.decision)
  if (!decided || decided.decision === null)
    throw new NotPreparedError(`${name} changed meanwhile and was not decided; look again`)
  await drive(ctx, decided)
  const now = (await findByAttempt(sql, attempt)) ?? decided
  const state =
    now.status === 'committing' || now.status === 'rolling_back' ? now.status : ended(hand.decision)
  return { ...seen, state, quarantine: now.quarantine }
}

/** What an operator may not do himself (the last step of the row belongs to the application's role) recovery does. */
async function drive(ctx: JobContext, row: DistributedTransaction): Promise<void> {
  try {
    if (row.status === 'committing') await driveCommit(ctx, row)
    if (row.status === 'rolling_back') await driveAbort(ctx, row)
  } catch (error) {
    if (!isPassing(error) && sqlstateOf(error) !== SQLSTATE.insufficientPrivilege) throw error
    ctx.log.warn({ err: error, name: row.name }, 'decided, but not finished here; recovery does it')
  }
}

function ended(decision: 'commit' | 'abort'): 'committed' | 'rolled_back' {
  return decision === 'commit' ? 'committed' : 'rolled_back'
}

function refuseContradiction(
  name: string,
  decided: 'commit' | 'abort' | null,
  wanted: 'commit' | 'abort',
): void {
  if (decided === null || decided === wanted) return
  if (decided === 'commit')
    throw new CommittedError(
      `${name} is decided: commit. It cannot be rolled back; undo it with new work of its own`,
    )
  throw new RolledBackError(`${name} is decided: rolled back. It cannot be committed; begin it again`)
}

/** A marker is a fact, whatever the row says: a database that committed cannot follow a rollback, nor the reverse. */
function refuseMarkers(name: string, { participants }: Evidence, wanted: 'commit' | 'abort'): void {
  const against = wanted === 'commit' ? 'aborted' : 'committed'
  const marked = Object.keys(participants).filter((participant) => {
    const seen = participants[participant]
    return seen !== undefined && 'marker' in seen && seen.marker === against
  })
  if (marked.length === 0) return
  const where = marked.join(', ')
  if (wanted === 'abort')
    throw new CommittedError(
      `${where} has committed ${name}, as its marker says, so it cannot be rolled back; \`holdfast tx show ${name}\` says more`,
    )
  throw new RolledBackError(
    `${where} has rolled ${name} back, as its marker says, so it cannot be committed; \`holdfast tx show ${name}\` says more`,
  )
}

/** Before anything undecided is decided every participant is asked, as recovery does; commit needs all of them. */
async function checkDecidable(
  ctx: JobContext,
  row: DistributedTransaction,
  { participants }: Evidence,
  wanted: 'commit' | 'abort',
): Promise<void> {
  const { name } = row
  const gone: string[] = []
  for (const [participant, seen] of Object.entries(participants)) {
    if ('unavailable' in seen) {
      throw new UnknownOutcomeError(
        `${participant} cannot be asked what became of ${name} (${seen.unavailable}), and a decision must not contradict it; try again once it can`,
      )
    }
    if (!seen.prepared && seen.marker === null) gone.push(participant)
  }
  if (wanted === 'abort') return
  if (row.status !== 'pending')
    throw new NotPreparedError(
      `${name} is ${row.status}: not prepared everywhere, so it can only be rolled back`,
    )
  if (gone.length > 0)
    throw new NotPreparedError(
      `${gone.join(', ')} has neither the prepared transaction of ${name} nor its marker: it was rolled back by hand, or lost, so the others can only follow`,
    )
  const live = row.owner === null ? [] : [...(await liveOwners(ctx.databases.primary.sql, [row.owner]))]
  if (live.length > 0)
    throw new NameInUseError(
      `a live run is in the effects of ${name} and commits it by itself when they succeed; stop that process first, or roll it back`,
    )
  const ballots = await ctx.databases.primary.transaction((tx) => readBallots(tx, row.attempt))
  const missing = ballots.filter(({ vote }) => vote === null).map(({ service }) => service)
  if (missing.length > 0)
    throw new VotesOutstandingError(
      `${name} waits for ${missing.join(', ')}: the last ready vote commits it. Roll it back if they will not come`,
    )
}

/** Work without a row: its gid says the policy, and the markers of the others what became of them. */
async function finishOrphansByHand(ctx: JobContext, name: string, hand: ByHand): Promise<ByHandResult> {
  const found = await findOrphans(ctx, name)
  const [first] = found
  if (!first) throw new UnknownTransactionError(`nothing named ${name} is recorded or prepared`)
  const evidence: Record<string, Json> = {}
  for (const orphan of found) {
    const committed = await committedElsewhere(ctx, orphan)
    const forward = orphan.parts.policy === 'commit-forward'
    evidence[orphan.gid] = { participant: orphan.participant.name, owner: orphan.owner, committed }
    if ((forward || committed !== null) && hand.decision === 'abort')
      throw new CommittedError(
        committed === null
          ? `${name} is effect-free work that goes forward: it can only be committed`
          : `${committed} has committed this attempt of ${name}, as its marker says: it can only be committed`,
      )
    if (!forward && committed === null && hand.decision === 'commit')
      throw new RolledBackError(
        `${name} has no recorded decision and no database has committed it, so it is presumed aborted`,
      )
  }
  const live = await liveOwnersOf(ctx, found)
  const busy = found.find(({ parts }) => live.has(ownerOf(parts.attempt)))
  if (busy) throw new NameInUseError(`a live process is at ${name} and finishes ${busy.gid} by itself`)
  const { attempt } = first.parts
  const seen = { name, attempt, decision: hand.decision, quarantine: null, evidence }
  if (hand.dryRun === true) return { ...seen, state: 'would finish' }
  let resolved = false
  for (const orphan of found) {
    const looked = evidence[orphan.gid] ?? null
    await allowed(name, () =>
      recordByHand(ctx.databases.primary.sql, orphan.parts, hand, { gid: orphan.gid, seen: looked }),
    )
    const became = await reachable(orphan.participant.name, () => recoverOrphan(ctx, orphan, false))
    // The first of several resolves the others along with itself.
    if (became === 'left' && resolved && !(await isPrepared(ctx, orphan))) continue
    if (became !== (hand.decision === 'commit' ? 'committed' : 'rolledBack'))
      throw new UnknownOutcomeError(
        `${orphan.gid} was ${became === 'left' ? 'finished by somebody else meanwhile' : became}; \`holdfast tx show ${name}\` says what became of it`,
      )
    resolved = true
  }
  return { ...seen, state: ended(hand.decision) }
}

async function findOrphans(ctx: JobContext, name: string): Promise<InDoubt[]> {
  const found: InDoubt[] = []
  for (const participant of ctx.databases.all) {
    const named = await reachable(participant.name, () =>
      findInDoubt(ctx, participant, (parts) => parts.name === nameInGid(name)),
    )
    found.push(...named)
  }
  return found
}

async function isPrepared(ctx: JobContext, { participant, gid }: InDoubt): Promise<boolean> {
  const listed = await findInDoubt(ctx, participant, () => true)
  return listed.some((other) => other.gid === gid)
}

/** The participant whose marker proves that the attempt was committed; null: none of those that can have taken part. */
async function committedElsewhere(ctx: JobContext, { parts }: InDoubt): Promise<string | null> {
  for (const name of targetsOf(parts) ?? ctx.databases.names) {
    const marker = await reachable(name, () => readMarker(ctx.databases.get(name), parts.attempt))
    if (marker === 'committed') return name
  }
  return null
}

async function reachable<T>(participant: string, act: () => Promise<T>): Promise<T> {
  try {
    return await act()
  } catch (error) {
    if (!isPassing(error)) throw error
    throw new UnknownOutcomeError(`${participant} could not be reached (${messageOf(error)}); call again`, {
      cause: error,
    })
  }
}

/** Lets recovery look again at what was quarantined. False: it was not. */
export async function recoverByHand(
  ctx: JobContext,
  name: string,
  who: string,
  why: string,
): Promise<boolean> {
  checkAsked(name, why)
  const { sql } = ctx.databases.primary
  const row = await findByName(sql, name)
  if (!row) throw new UnknownTransactionError(`no transaction named ${name} is recorded`)
  const [earlier] = row.quarantine === null ? await givenUpOf(ctx, name) : []
  return allowed(name, () => releaseQuarantine(sql, earlier ?? row.attempt, { who, why }))
}

/** Records that somebody undid what compensations that were given up were to undo. False: none was. */
export async function compensatedByHand(
  ctx: JobContext,
  name: string,
  who: string,
  why: string,
): Promise<boolean> {
  checkAsked(name, why)
  let recorded = false
  for (const attempt of await givenUpOf(ctx, name)) {
    const one = allowed(name, () => recordCompensated(ctx.databases.primary.sql, attempt, { who, why }))
    recorded = (await one) || recorded
  }
  return recorded
}

/** The attempts of a name, not only the last one, whose compensation was given up. */
async function givenUpOf(ctx: JobContext, name: string): Promise<string[]> {
  const unsettled = await listUnsettledCompensations(ctx.databases.primary.sql, name)
  return unsettled.filter(({ compensation }) => compensation === 'failed').map(({ attempt }) => attempt)
}

/** After a promotion or a restore: recovery may go on with the server as it is now. */
export async function confirmByHand(
  ctx: JobContext,
  participantName: string,
  who: string,
): Promise<Timeline> {
  const participant = ctx.databases.get(participantName)
  if (await isInRecovery(participant.sql))
    throw new InvalidConfigError([`${participantName} is a standby; confirm it once it is promoted`])
  return allowed(participantName, () => confirmTimeline(ctx.databases.primary.sql, participant, who))
}

function checkAsked(name: string, why: string): void {
  checkTransactionName(name)
  if (why.trim() === '') throw new InvalidConfigError(['what is done by hand needs a reason'])
}

async function allowed<T>(name: string, act: () => Promise<T>): Promise<T> {
  try {
    return await act()
  } catch (error) {
    if (sqlstateOf(error) !== SQLSTATE.insufficientPrivilege) throw error
    throw new NotAllowedError(
      `this login may not resolve ${name} by hand (${messageOf(error)}); use one that is a member of holdfast_operator`,
      { cause: error },
    )
  }
}
