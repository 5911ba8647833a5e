import type { BlastRadius } from '../db/blast-radius.ts'
import type { Inspection, OnServer, OpenWork } from '../jobs/inspect.ts'
import { age, section, table } from './table.ts'
import type { Advice } from './tx-advice.ts'

/** How `holdfast tx` shows things to humans. */
export function describeList(work: OpenWork): string {
  const parts = [
    section(
      work.more ? 'transactions (there are more: --limit)' : 'transactions',
      ['name', 'status', 'age', 'participants', 'prepared on', 'owner', 'why'],
      work.transactions.map((t) => [
        t.name,
        t.status,
        age(t.ageSeconds),
        t.participants.join(','),
        t.preparedOn.join(',') || '-',
        owner(t.owner, t.ownerAlive),
        why(t),
      ]),
    ),
    section(
      'ours without an open row: recovery resolves them by their policy and the markers',
      ['name', 'policy', ...serverColumns],
      work.unrecorded.map((one) => [one.name, one.policy, ...serverCells(one)]),
    ),
    section(
      "another installation's: never touched",
      serverColumns,
      work.otherInstallations.map((one) => serverCells(one)),
    ),
    section(
      'foreign: never touched',
      serverColumns,
      work.foreign.map((one) => serverCells(one)),
    ),
    section('not asked, or paused', ['participant', 'why'], Object.entries(work.unavailable)),
  ].filter((part) => part !== '')
  return parts.length === 0 ? 'nothing is open, nothing is prepared\n' : parts.join('\n')
}

const serverColumns = ['age', 'owner', 'database', 'seen from', 'gid']

function serverCells(one: OnServer): string[] {
  return [age(one.ageSeconds), one.owner, one.database, one.seenFrom.join(','), one.gid]
}

function why(t: OpenWork['transactions'][number]): string {
  if (t.quarantine !== null) return t.quarantine
  if (t.compensation === 'due' || t.compensation === 'failed') return `compensation ${t.compensation}`
  return t.reason ?? ''
}

export function describeInspection(i: Inspection, advice: Advice): string {
  const t = i.transaction
  const facts: [string, string][] = [['outcome', i.outcome.state]]
  if (t) {
    facts.unshift(
      ['status', t.status === t.recorded ? t.status : `${t.status} (recorded: ${t.recorded})`],
      ...(t.quarantine === null ? [] : [['because', t.quarantine] as [string, string]]),
      [
        'decision',
        t.decision === null ? 'none yet' : `${t.decision}${t.reason === null ? '' : `: ${t.reason}`}`,
      ],
      ['attempt', t.attempt],
      ['operation', t.operation ?? '-'],
      ['deadline', `${t.deadline.toISOString()}${i.pastDeadline ? ' (past)' : ''}`],
      ['owner', owner(t.owner, t.ownerAlive)],
      ['compensation', t.compensation],
    )
  }
  const evidence = Object.entries(i.outcome.evidence.participants).map(([name, seen]) =>
    'unavailable' in seen
      ? [name, '?', '?', seen.unavailable]
      : [
          name,
          seen.prepared ? 'yes' : 'no',
          seen.marker ?? 'none',
          i.paused[name] ?? i.unavailable[name] ?? '',
        ],
  )
  return [
    `${i.name}\n${table(facts)}`,
    section('participants', ['name', 'prepared', 'marker', ''], evidence),
    ...i.prepared.map((p) =>
      p.blastRadius === null ? '' : describeBlastRadius(p.participant, p.owner, p.blastRadius),
    ),
    section(
      'votes',
      ['service', 'vote', 'reason'],
      i.votes.map((v) => [v.service, v.vote ?? 'outstanding', v.reason ?? '']),
    ),
    section(
      'finished outside Holdfast',
      ['at', 'event', 'detail'],
      i.heuristic.map((h) => [h.at.toISOString(), h.event, JSON.stringify(h.detail)]),
    ),
    section(
      'events',
      ['at', 'event', 'by', 'detail'],
      i.events.map((e) => [
        e.at.toISOString(),
        e.event,
        e.actor,
        e.detail === null ? '' : JSON.stringify(e.detail),
      ]),
    ),
    `next: ${advice.kind}: ${advice.why}\n${advice.commands.map((command) => `  ${command}\n`).join('')}`,
  ]
    .filter((part) => part !== '')
    .join('\n')
}

function describeBlastRadius(participant: string, role: string, b: BlastRadius): string {
  const title = `prepared on ${participant} by ${role} ${age(b.ageSeconds)} ago, ${b.ageTransactions.toLocaleString('en-US')} transactions ago; vacuum is held back as far`
  const more = b.waiting > b.waiters.length ? `, ${b.waiters.length} of them shown` : ''
  return [
    section(
      title,
      ['locks', 'mode', 'count'],
      b.locks.map((lock) => [lock.relation ?? lock.type, lock.mode, String(lock.count)]),
    ),
    section(
      `waiting for it: ${b.waiting}${more}`,
      ['pid', 'application', 'waits', 'query began', 'for'],
      b.waiters.map((w) => [
        String(w.pid),
        w.application,
        w.waitSeconds === null ? '?' : age(w.waitSeconds),
        w.querySeconds === null ? '?' : `${age(w.querySeconds)} ago`,
        `${w.relation ?? w.type}${w.direct ? '' : ', behind another'}`,
      ]),
    ),
  ].join('')
}

function owner(id: string | null, alive: boolean): string {
  return id === null ? '-' : `${id} (${alive ? 'alive' : 'gone'})`
}
