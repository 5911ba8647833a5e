import { type BlastRadius, listServer, readBlastRadius } from '../db/blast-radius.ts'
import type { Participant } from '../db/databases.ts'
import {
  type DistributedTransaction,
  findByAttempt,
  findByName,
  listTransactions,
  ownerLives,
  type Status,
} from '../db/distributed-transactions.ts'
import { UnknownTransactionError } from '../db/errors.ts'
import { messageOf } from '../db/message-of.ts'
import { isInRecovery } from '../db/prepared.ts'
import { readServer } from '../db/servers.ts'
import { changedTimeline } from '../db/timelines.ts'
import { listEvents, type RecordedEvent } from '../db/transaction-events.ts'
import { gidPrefix, nameInGid, ownerOf, parseGid } from '../db/transaction-name.ts'
import { readBallots } from '../db/votes.ts'
import { within } from '../db/within.ts'
import { liveOwners } from '../db/workers.ts'
import type { JobContext } from './context.ts'
import { findInDoubt, patienceMs } from './listing.ts'
import { type Outcome, outcome } from './outcome.ts'

/** Looking at transactions: touches none of them. */
const manual = 'requires_manual_intervention'
export type ShownStatus = Status | typeof manual

/** Quarantine stands beside the status, which it does not replace; shown is what an operator has to know first. */
export function shownStatus(row: Pick<DistributedTransaction, 'status' | 'quarantine'>): ShownStatus {
  return row.quarantine === null ? row.status : manual
}

/** A row without what the work wrote into it. */
type Summary = Omit<DistributedTransaction, 'status' | 'metadata' | 'staged' | 'result' | 'traceparent'> & {
  status: ShownStatus
  /** the status beside a quarantine */
  recorded: Status
  ownerAlive: boolean
}

/** A prepared transaction on one of the servers. `seenFrom`: the participants of that server. */
export type OnServer = {
  gid: string
  database: string
  owner: string
  ageSeconds: number
  seenFrom: string[]
}
type Unrecorded = OnServer & { name: string; policy: string; ownerAlive: boolean }

export type OpenWork = {
  transactions: (Summary & { preparedOn: string[]; ageSeconds: number })[]
  /** there are more than were asked for */
  more: boolean
  /** ours, but no unfinished row knows them: recovery resolves them by policy and markers */
  unrecorded: Unrecorded[]
  otherInstallations: OnServer[]
  foreign: OnServer[]
  /** participants that could not be asked, or on which recovery is paused, with the reason */
  unavailable: Record<string, string>
}

export async function listOpen(
  ctx: JobContext,
  { status, limit = 100 }: { status?: ShownStatus; limit?: number } = {},
): Promise<OpenWork> {
  const { sql } = ctx.databases.primary
  const { servers, unavailable } = await readServers(ctx)
  const found =
    status === manual
      ? (await listTransactions(sql, { limit: 10_000 })).filter((row) => row.quarantine !== null)
      : await listTransactions(sql, { ...(status === undefined ? {} : { status }), limit: limit + 1 })
  const rows = found.slice(0, limit)
  const seen = servers.map((one) => ({ ...one, parts: parseGid(one.gid) }))
  const ours = seen.flatMap(({ parts, ...one }) =>
    parts && one.gid.startsWith(gidPrefix(ctx.installation)) ? [{ ...one, parts }] : [],
  )
  const live = await liveOwners(sql, [
    ...rows.flatMap((row) => row.owner ?? []),
    ...ours.map(({ parts }) => ownerOf(parts.attempt)),
  ])
  const recorded = new Set(rows.map((row) => row.attempt))
  const unrecorded: Unrecorded[] = []
  for (const { parts, ...one } of ours) {
    if (recorded.has(parts.attempt)) continue
    const row = await findByAttempt(sql, parts.attempt)
    if (row && !isEnd(row.status)) continue
    const ownerAlive = live.has(ownerOf(parts.attempt))
    unrecorded.push({ ...one, name: parts.name, policy: parts.policy, ownerAlive })
  }
  const others = seen.filter(({ gid }) => !ours.some((one) => one.gid === gid))
  return {
    transactions: rows.map((row) => ({
      ...summarize(row, row.owner !== null && live.has(row.owner)),
      preparedOn: ours.flatMap(({ parts }) => (parts.attempt === row.attempt ? parts.participant : [])),
      ageSeconds: (ctx.clock.now() - row.createdAt.getTime()) / 1000,
    })),
    more: found.length > limit,
    unrecorded,
    otherInstallations: others.filter(({ gid }) => gid.startsWith('hf1/')).map(onServer),
    foreign: others.filter(({ gid }) => !gid.startsWith('hf1/')).map(onServer),
    unavailable,
  }
}

/** What is prepared on each server once, however many participants live there. */
async function readServers(
  ctx: JobContext,
): Promise<{ servers: OnServer[]; unavailable: Record<string, string> }> {
  const byServer = new Map<string, OnServer>()
  const unavailable: Record<string, string> = {}
  await Promise.all(
    ctx.databases.all.map(async (participant) => {
      const unasked = await asked(participant, async () => {
        if (await isInRecovery(participant.sql)) return 'it is a standby'
        const { systemIdentifier } = await readServer(participant.sql)
        for (const { gid, database, owner, preparedAt } of await listServer(participant.sql)) {
          const known = byServer.get(`${systemIdentifier} ${gid}`)
          known?.seenFrom.push(participant.name)
          if (known) continue
          const ageSeconds = (ctx.clock.now() - preparedAt.getTime()) / 1000
          byServer.set(`${systemIdentifier} ${gid}`, {
            gid,
            database,
            owner,
            ageSeconds,
            seenFrom: [participant.name],
          })
        }
        return pausedReason(ctx, participant)
      })
      if (unasked !== undefined) unavailable[participant.name] = unasked
    }),
  )
  const servers = [...byServer.values()].toSorted((a, b) => b.ageSeconds - a.ageSeconds)
  return { servers, unavailable }
}

export type Inspection = {
  name: string
  /** null: no row is recorded */
  transaction: Summary | null
  pastDeadline: boolean
  votes: { service: string; vote: 'ready' | 'abort' | null; reason: string | null }[]
  outcome: Outcome
  /** what is prepared now under this attempt (without a row: under this name), and what it keeps from others */
  prepared: {
    participant: string
    gid: string
    owner: string
    policy: string
    blastRadius: BlastRadius | null
  }[]
  /** whether the process that staged what is prepared without a row lives */
  ownerAlive: boolean
  /** participants on which recovery is paused, with the reason */
  paused: Record<string, string>
  /** participants of which the evidence or what is prepared could not be read, with the reason */
  unavailable: Record<string, string>
  /** finished outside Holdfast: what contradicts the decision, or took its place */
  heuristic: { at: Date; event: string; detail: RecordedEvent['detail'] }[]
  events: RecordedEvent[]
}

/** Throws UnknownTransactionError when nothing of this name is recorded, prepared or marked. */
export async function inspect(ctx: JobContext, name: string): Promise<Inspection> {
  const { primary } = ctx.databases
  const seen = await outcome(ctx, name)
  const row = await findByName(primary.sql, name)
  const events = await listEvents(primary.sql, name)
  if (!row && seen.state === 'never') throw new UnknownTransactionError(`nothing named ${name} is recorded`)
  const prepared: Inspection['prepared'] = []
  const paused: Record<string, string> = {}
  const unavailable: Record<string, string> = {}
  const alive = new Set<string>()
  for (const participant of ctx.databases.all) {
    if (row && !row.participants.includes(participant.name)) continue
    const unasked = await asked(participant, async () => {
      const reason = await pausedReason(ctx, participant)
      if (reason !== undefined) paused[participant.name] = reason
      const found = await findInDoubt(ctx, participant, (parts) =>
        row ? parts.attempt === row.attempt : parts.name === nameInGid(name),
      )
      for (const { gid, owner, parts } of found) {
        const blastRadius = (await readBlastRadius(participant.sql, gid)) ?? null
        prepared.push({ participant: participant.name, gid, owner, policy: parts.policy, blastRadius })
      }
      const owners = found.map(({ parts }) => ownerOf(parts.attempt))
      for (const owner of await liveOwners(primary.sql, owners)) alive.add(owner)
      return undefined
    })
    if (unasked !== undefined) unavailable[participant.name] = unasked
  }
  const ballots = row ? await primary.transaction((tx) => readBallots(tx, row.attempt)) : []
  const ownerAlive = row ? await ownerLives(primary.sql, row.attempt) : alive.size > 0
  return {
    name,
    transaction: row ? summarize(row, ownerAlive) : null,
    pastDeadline: row !== undefined && row.deadline.getTime() < ctx.clock.now(),
    votes: ballots.map(({ service, vote, reason }) => ({ service, vote, reason })),
    outcome: seen,
    prepared,
    ownerAlive,
    paused,
    unavailable,
    heuristic: events
      .filter((e) => isHeuristic(e.detail) && (!row || e.attempt === row.attempt))
      .map(({ at, event, detail }) => ({ at, event, detail })),
    events,
  }
}

function isHeuristic(detail: RecordedEvent['detail']): boolean {
  if (detail === null || typeof detail !== 'object') return false
  return (
    ('heuristic' in detail && detail.heuristic === true) ||
    ('outcome' in detail && detail.outcome === 'heuristic')
  )
}

function summarize(row: DistributedTransaction, ownerAlive: boolean): Summary {
  const { status, metadata: _m, staged: _s, result: _r, traceparent: _t, ...rest } = row
  return { ...rest, status: shownStatus(row), recorded: status, ownerAlive }
}

export function isEnd(status: Status): boolean {
  return status === 'committed' || status === 'rolled_back' || status === 'cleaned_up'
}

function onServer({ gid, database, owner, ageSeconds, seenFrom }: OnServer): OnServer {
  return { gid, database, owner, ageSeconds, seenFrom: seenFrom.toSorted() }
}

async function pausedReason(ctx: JobContext, participant: Participant): Promise<string | undefined> {
  const change = await changedTimeline(ctx.databases.primary.sql, participant, ctx.lease.id)
  if (!change) return undefined
  return `recovery is paused: its server lives on timeline ${change.is.timeline}, confirmed was ${change.was.timeline}${change.is.systemIdentifier === change.was.systemIdentifier ? '' : ' of another cluster'}`
}

/** What `look` says, or why it could not: one participant that hangs keeps nothing of the others back. */
async function asked(
  participant: Participant,
  look: () => Promise<string | undefined>,
): Promise<string | undefined> {
  try {
    return await within(patienceMs, `asking ${participant.name}`, look())
  } catch (error) {
    return messageOf(error)
  }
}
