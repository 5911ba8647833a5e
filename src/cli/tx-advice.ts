import type { Status } from '../db/distributed-transactions.ts'
import { type Inspection, isEnd } from '../jobs/inspect.ts'
import type { ParticipantEvidence } from '../jobs/outcome.ts'
import { judge } from '../jobs/verdict.ts'

/**
 * What an operator should do about a transaction, and the commands for it.
 *
 * - nothing: it is at its end
 * - leave: somebody is at it, or it waits within its deadline
 * - decide: it waits for a hand
 * - recover: recovery finishes it
 * - check: something was done against the decision, or escaped; a human has to compare the data
 * - compensate: what its effects did outside is not undone
 * - reach: a database has to be brought back first
 * - confirm: a server was promoted or restored, and recovery waits for a word
 */
export type AdviceKind =
  | 'nothing'
  | 'leave'
  | 'decide'
  | 'recover'
  | 'check'
  | 'compensate'
  | 'reach'
  | 'confirm'
export type Advice = { kind: AdviceKind; why: string; commands: string[] }

export type Situation = {
  name: string
  /** null: no row is recorded */
  row: {
    status: Status
    decision: 'commit' | 'abort' | null
    quarantine: string | null
    compensation: 'none' | 'due' | 'done' | 'failed'
    resumable: boolean
  } | null
  ownerAlive: boolean
  pastDeadline: boolean
  /** services that have not voted yet */
  awaited: string[]
  participants: Record<string, ParticipantEvidence>
  /** participants on which recovery is paused */
  paused: string[]
  /** something is prepared under this name */
  prepared: boolean
}

export function situationOf(i: Inspection): Situation {
  const t = i.transaction
  return {
    name: i.name,
    row: t && {
      status: t.recorded,
      decision: t.decision,
      quarantine: t.quarantine,
      compensation: t.compensation,
      resumable: t.resumable,
    },
    ownerAlive: i.ownerAlive,
    pastDeadline: i.pastDeadline,
    awaited: i.votes.filter(({ vote }) => vote === null).map(({ service }) => service),
    participants: i.outcome.evidence.participants,
    paused: Object.keys(i.paused),
    prepared: i.prepared.length > 0,
  }
}

export function advise(s: Situation): Advice {
  const { name, row } = s
  if (row !== null && isEnd(row.status)) return adviseEnded(s, row)
  const [paused] = s.paused
  if (paused !== undefined && (row !== null || s.prepared))
    return {
      kind: 'confirm',
      why: `${paused} was promoted or restored; compare its data with the others', then confirm it`,
      commands: s.paused.map((one) => `holdfast tx recover --confirm-timeline ${one}`),
    }
  if (row === null) return adviseUnrecorded(s)
  if (row.quarantine !== null) return adviseQuarantined(s, row.quarantine, row.decision)
  const unavailable = Object.keys(s.participants).filter((p) => 'unavailable' in (s.participants[p] ?? {}))
  if (unavailable.length > 0)
    return {
      kind: 'reach',
      why: `${unavailable.join(', ')} cannot be asked; recovery goes on by itself once it can`,
      commands: ['holdfast tx recover'],
    }
  if (row.decision !== null)
    return {
      kind: 'recover',
      why: `decided: ${row.decision}; recovery drives it to its end`,
      commands: ['holdfast tx recover'],
    }
  return adviseUndecided(name, s, row)
}

/** What recovery itself would do, by the same judgement. */
function adviseUndecided(name: string, s: Situation, row: NonNullable<Situation['row']>): Advice {
  const verdict = judge({
    status: row.status,
    running: s.ownerAlive,
    pastDeadline: s.pastDeadline,
    participants: factsOf(s.participants),
  })
  const rollback = `holdfast tx rollback ${name} --reason '…'`
  switch (verdict.act) {
    case 'quarantine':
      return { kind: 'check', why: verdict.reason, commands: ['holdfast tx recover'] }
    case 'commit':
    case 'abort':
      return {
        kind: 'recover',
        why: `${verdict.reason}: recovery decides ${verdict.act}`,
        commands: ['holdfast tx recover'],
      }
    default:
  }
  if (s.ownerAlive)
    return {
      kind: 'leave',
      why: 'a live process is at it; it ends it by itself, or its deadline does',
      commands: [],
    }
  if (s.awaited.length > 0)
    return { kind: 'leave', why: `it waits for the votes of ${s.awaited.join(', ')}`, commands: [rollback] }
  if (row.resumable)
    return {
      kind: 'leave',
      why: 'its process is gone; whoever calls it again goes on, or its deadline rolls it back',
      commands: [rollback],
    }
  return {
    kind: 'decide',
    why: 'it is prepared everywhere and waits to be committed or rolled back; its deadline rolls it back',
    commands: [`holdfast tx commit ${name} --reason '…'`, rollback],
  }
}

function adviseUnrecorded({ name, prepared, ownerAlive }: Situation): Advice {
  if (!prepared) return { kind: 'nothing', why: 'nothing of it is prepared', commands: [] }
  if (ownerAlive) return { kind: 'leave', why: 'a live process is at it', commands: [] }
  return {
    kind: 'recover',
    why: `${name} is prepared without a row; recovery resolves it by its policy and the markers`,
    commands: ['holdfast tx recover'],
  }
}

function adviseQuarantined(s: Situation, why: string, decision: 'commit' | 'abort' | null): Advice {
  const recover = `holdfast tx recover ${s.name} --reason '…'`
  const against = contradicting(s.participants, decision)
  if (decision === null || against.length === 0) {
    const heuristic = Object.values(s.participants).some((p) => 'marker' in p && p.marker === 'committed')
    return decision === null && heuristic
      ? { kind: 'check', why: `${why}; undo there, by new work, what should not stand`, commands: [recover] }
      : { kind: 'recover', why: `${why}; remove the cause, then let recovery try again`, commands: [recover] }
  }
  return {
    kind: 'check',
    why: `${why}. The decision ${decision} stays: compare the data of ${against.join(', ')} with it and make it good by new work`,
    commands: [recover],
  }
}

function adviseEnded({ name, prepared }: Situation, row: NonNullable<Situation['row']>): Advice {
  const recover = `holdfast tx recover ${name} --reason '…'`
  if (row.compensation === 'failed')
    return {
      kind: 'compensate',
      why: `${row.quarantine ?? 'its compensation was given up'}; remove the cause and let it be tried again, or undo it by hand and say so`,
      commands: [recover, `holdfast tx recover ${name} --compensated --reason '…'`],
    }
  if (row.quarantine !== null)
    return {
      kind: 'check',
      why: `${row.quarantine}; look at what escaped, then take it off the list`,
      commands: [recover],
    }
  if (prepared)
    return {
      kind: 'recover',
      why: `it is ${row.status}, but still prepared`,
      commands: ['holdfast tx recover'],
    }
  if (row.compensation === 'due')
    return { kind: 'leave', why: 'a worker that knows its operation compensates it', commands: [] }
  return { kind: 'nothing', why: `it is ${row.status}`, commands: [] }
}

/** The participants that did otherwise than was decided. */
function contradicting(
  participants: Situation['participants'],
  decision: 'commit' | 'abort' | null,
): string[] {
  return Object.entries(participants).flatMap(([name, seen]) => {
    if (!('marker' in seen)) return []
    const gone = !seen.prepared && seen.marker !== 'committed'
    return (decision === 'commit' ? gone : decision === 'abort' && seen.marker === 'committed') ? [name] : []
  })
}

function factsOf(participants: Situation['participants']) {
  return Object.entries(participants).flatMap(([name, seen]) =>
    'marker' in seen
      ? [
          {
            name,
            gid: seen.prepared ? ('listed' as const) : ('absent' as const),
            marker: seen.marker ?? undefined,
          },
        ]
      : [],
  )
}
