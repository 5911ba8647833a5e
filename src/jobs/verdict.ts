import type { Status } from '../db/distributed-transactions.ts'
import type { MarkerOutcome } from '../db/markers.ts'

/** What recovery knows of one attempt before it acts, all of it recorded facts. */
export type Facts = {
  status: Status
  /** a live run is at it: its process's lease lives (in our own process: it is being staged or run just now) */
  running: boolean
  pastDeadline: boolean
  /** undefined while a participant cannot be asked */
  participants: readonly ParticipantFacts[] | undefined
}

export type ParticipantFacts = {
  name: string
  /** `changing`: only one of the two listings showed it */
  gid: 'listed' | 'absent' | 'changing'
  /** read after the listings */
  marker: MarkerOutcome | undefined
}

/** Why an attempt was aborted. */
export type AbortCause = 'caller' | 'failed' | 'vote' | 'abandoned' | 'deadline' | 'by-hand' | 'operator'

export type Verdict =
  | { act: 'leave' }
  /** decided: finish it */
  | { act: 'drive' }
  | { act: 'commit'; reason: string }
  | { act: 'abort'; cause: AbortCause; reason: string }
  | { act: 'quarantine'; reason: string }

const leave: Verdict = { act: 'leave' }

/**
 * What recovery does with an attempt. Age alone decides nothing: the deadline only ends the waiting, and before anything
 * undecided is aborted, every participant's marker was read.
 */
export function judge(facts: Facts): Verdict {
  const { status, running, pastDeadline, participants } = facts
  if (status === 'committing' || status === 'rolling_back') return { act: 'drive' }
  if (status !== 'started' && status !== 'pending') return leave
  if (participants === undefined) return leave
  if (running && !pastDeadline) return leave
  return status === 'started'
    ? judgeStarted(participants, pastDeadline)
    : judgePending(participants, pastDeadline)
}

/** Staged by a run that is gone. Not all had to be prepared, so one that committed contradicts the protocol. */
function judgeStarted(participants: readonly ParticipantFacts[], pastDeadline: boolean): Verdict {
  const committed = committedOn(participants)
  if (committed.length > 0) {
    return {
      act: 'quarantine',
      reason: `never decided, but ${committed.join(', ')} committed: it was committed by hand before all had prepared`,
    }
  }
  return pastDeadline
    ? { act: 'abort', cause: 'deadline', reason: 'past its deadline while it was being staged' }
    : { act: 'abort', cause: 'abandoned', reason: 'its process ended while staging' }
}

/**
 * All had prepared. While the row says `pending` nobody but somebody at psql can have finished a gid: whoever does it by
 * the protocol decides first. So a committed marker is a commit by hand, and a gid that is gone without one is a rollback
 * by hand; the other participants follow.
 */
function judgePending(participants: readonly ParticipantFacts[], pastDeadline: boolean): Verdict {
  const committed = committedOn(participants)
  if (committed.length > 0) return { act: 'commit', reason: `committed by hand on ${committed.join(', ')}` }
  if (participants.some(({ gid }) => gid === 'changing')) return leave
  const gone = participants.filter(({ gid }) => gid === 'absent').map(({ name }) => name)
  if (gone.length > 0)
    return { act: 'abort', cause: 'by-hand', reason: `rolled back by hand, or lost, on ${gone.join(', ')}` }
  return pastDeadline ? { act: 'abort', cause: 'deadline', reason: 'past its deadline' } : leave
}

function committedOn(participants: readonly ParticipantFacts[]): string[] {
  return participants.filter(({ marker }) => marker === 'committed').map(({ name }) => name)
}
