import type { Participant } from '../db/databases.ts'
import { type DistributedTransaction, findByAttempt, findByName } from '../db/distributed-transactions.ts'
import { committedForwardAttempt, type MarkerOutcome, readMarker } from '../db/markers.ts'
import { messageOf } from '../db/message-of.ts'
import { isInRecovery, listPrepared } from '../db/prepared.ts'
import { lastEvent } from '../db/transaction-events.ts'
import { checkTransactionName, nameInGid, parseGid } from '../db/transaction-name.ts'
import { within } from '../db/within.ts'
import type { JobContext } from './context.ts'

/** What became of a name, and how that is known. */
export type Outcome = {
  state: 'prepared' | 'committed' | 'rolled_back' | 'never' | 'unknown'
  evidence: Evidence
}

export type Evidence = {
  attempt: string | null
  /** of the row; null when none is recorded (never begun, effect-free work, or removed by retention) */
  status: DistributedTransaction['status'] | null
  decision: 'commit' | 'abort' | null
  reason: string | null
  quarantine: string | null
  /** by name */
  participants: Record<string, ParticipantEvidence>
  lastEvent: string | null
}

export type ParticipantEvidence =
  | { prepared: boolean; marker: MarkerOutcome | null }
  /** it could not be asked, or is a standby, which knows nothing of prepared transactions */
  | { unavailable: string }

const patienceMs = 10_000

/**
 * Asks the databases. On each the gids are listed first and the markers read after, in two statements: what was prepared
 * at the listing and is gone at the marker shows there; the other way round a commit in between would show in neither.
 * The row is read after all that: whatever was seen committed by the protocol was decided before.
 */
export async function outcome(ctx: JobContext, name: string): Promise<Outcome> {
  checkTransactionName(name)
  const { primary } = ctx.databases
  const known = await findByName(primary.sql, name)
  const names = known?.participants ?? ctx.databases.names
  const participants: Record<string, ParticipantEvidence> = {}
  await Promise.all(
    names.map(async (participant) => {
      participants[participant] = await ask(ctx, participant, name, known?.attempt)
    }),
  )
  const row = known && (await findByAttempt(primary.sql, known.attempt))
  const evidence: Evidence = {
    attempt: known?.attempt ?? null,
    status: row?.status ?? null,
    decision: row?.decision ?? null,
    reason: row?.reason ?? null,
    quarantine: row?.quarantine ?? null,
    participants,
    lastEvent: (await lastEvent(primary.sql, name)) ?? null,
  }
  return { state: conclude(evidence), evidence }
}

async function ask(
  ctx: JobContext,
  participantName: string,
  name: string,
  attempt: string | undefined,
): Promise<ParticipantEvidence> {
  try {
    const participant = ctx.databases.get(participantName)
    return await within(patienceMs, `asking ${participantName}`, look(ctx, participant, name, attempt))
  } catch (error) {
    return { unavailable: messageOf(error) }
  }
}

async function look(
  ctx: JobContext,
  participant: Participant,
  name: string,
  attempt: string | undefined,
): Promise<ParticipantEvidence> {
  if (await isInRecovery(participant.sql)) return { unavailable: 'it is a standby' }
  const listed = (await listPrepared(participant.sql, ctx.installation)).map(({ gid }) => parseGid(gid))
  const prepared = listed.some((parts) =>
    attempt === undefined ? parts?.name === nameInGid(name) : parts?.attempt === attempt,
  )
  if (attempt !== undefined) return { prepared, marker: (await readMarker(participant, attempt)) ?? null }
  const forward = await committedForwardAttempt(participant, name)
  return { prepared, marker: forward === undefined ? null : 'committed' }
}

/** Pure: what follows from the evidence. */
export function conclude(evidence: Evidence): Outcome['state'] {
  const seen = Object.values(evidence.participants)
  const asked = seen.filter((p) => 'marker' in p)
  const committed = asked.filter((p) => p.marker === 'committed').length
  if (evidence.status === null) {
    if (committed > 0) return 'committed'
    if (asked.some((p) => p.prepared)) return 'prepared'
    if (evidence.lastEvent === 'committed') return 'committed'
    if (evidence.lastEvent === 'rolled_back' || evidence.lastEvent === 'cleaned_up') return 'rolled_back'
    return asked.length === seen.length && evidence.lastEvent === null ? 'never' : 'unknown'
  }
  // What was finished by hand against the decision has no one outcome.
  if (evidence.quarantine !== null) {
    const ends = new Set(asked.map((p) => (p.prepared ? 'prepared' : (p.marker ?? 'none'))))
    if (ends.size > 1 || asked.length < seen.length || ends.has('none')) return 'unknown'
  }
  if (evidence.decision === 'commit')
    return asked.some((p) => p.marker === 'aborted') ? 'unknown' : 'committed'
  if (evidence.decision === 'abort') return committed > 0 ? 'unknown' : 'rolled_back'
  // Undecided: prepared everywhere, or finished by hand, or still being staged.
  if (asked.length < seen.length) return 'unknown'
  if (asked.every((p) => p.prepared)) return 'prepared'
  if (committed === asked.length) return 'committed'
  return 'unknown'
}
