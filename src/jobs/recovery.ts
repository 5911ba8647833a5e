import { liftQuarantine } from '../db/attempts.ts'
import {
  countOpen,
  type DistributedTransaction,
  findByAttempt,
  listUnfinished,
  type Unfinished,
} from '../db/distributed-transactions.ts'
import { readMarker } from '../db/markers.ts'
import { messageOf } from '../db/message-of.ts'
import { isPassing } from '../db/sqlstate.ts'
import { reached } from '../db/steps.ts'
import { formatGid, ownerOf } from '../db/transaction-name.ts'
import { within } from '../db/within.ts'
import type { JobContext } from './context.ts'
import { driveAbort, driveCommit } from './finish.ts'
import { type Listing, listEverywhere, patienceMs } from './listing.ts'
import { move, setAside } from './move.ts'
import { liveOwnersOf, type Outcome, recoverOrphan } from './orphans.ts'
import { traced } from './tracing.ts'
import { judge, type ParticipantFacts } from './verdict.ts'

/**
 * Recovery: finishes what a crash left behind. Runs at boot and every minute in every worker; any number of them may
 * run at once.
 *
 * The races, and what closes them:
 * 1. A gid appears or goes while we look. Gids are listed, then rows are read, then gids are listed again; only what
 *    both listings show is acted upon, the rest is for the next round.
 * 2. A live process is just doing it. Its lease says so: the row's owner, or for a gid without a row the owner in the
 *    attempt id. Undecided work of a live owner is left alone.
 * 3. The owner lost its lease but runs on. Decisions are compare-and-set: it finds the row moved and stops. A late
 *    PREPARE of an aborted attempt fails at the fence.
 * 4. Two recoveries finish the same gid. One gets 42704 and asks the marker, which says what the other did.
 * 5. A crash between the commits of two participants. An undecided attempt is never aborted before its markers were
 *    read everywhere; one that says committed proves commit.
 * 6. A participant cannot be reached, or hangs. What involves it is left for the next round; everything else goes on.
 */
export type RecoveryReport = {
  committed: number
  rolledBack: number
  /** in doubt, but of a live owner, or waiting for its deadline, or out of reach */
  left: number
  failed: number
}

export type RecoveryOptions = {
  signal?: AbortSignal
  /** the hourly pass: also what was decided and then quarantined, which may be finishable now */
  deep?: boolean
}

export async function recover(
  ctx: JobContext,
  { signal, deep = false }: RecoveryOptions = {},
): Promise<RecoveryReport> {
  const report: RecoveryReport = { committed: 0, rolledBack: 0, left: 0, failed: 0 }
  const first = await listEverywhere(ctx)
  const rows = await listUnfinished(ctx.databases.primary.sql, { quarantined: deep })
  await reached('recovery.listed')
  const second = await listEverywhere(ctx)
  alertOn(ctx, second, rows)
  // Without its own word the coordinator's gids and rows cannot be told apart: nothing is touched.
  if (second.unavailable.has('primary')) return { ...report, left: rows.length + second.found.size }

  await inParallel(rows, signal, (row) =>
    guarded(ctx, report, row, () => recoverRow(ctx, row, first, second)),
  )
  const known = new Set(rows.map((row) => row.attempt))
  const orphans = [...second.found.values()].filter(
    ({ gid, parts }) => first.found.has(gid) && !known.has(parts.attempt),
  )
  const live = await liveOwnersOf(ctx, orphans)
  await inParallel(orphans, signal, (orphan) =>
    guarded(ctx, report, { name: orphan.parts.name }, () =>
      recoverOrphan(ctx, orphan, live.has(ownerOf(orphan.parts.attempt))),
    ),
  )
  const ages = [...second.found.values()].map(({ preparedAt }) => ctx.clock.now() - preparedAt.getTime())
  ctx.telemetry.looked(await countOpen(ctx.databases.primary.sql), Math.max(0, ...ages) / 1000)
  return report
}

/** As many at once as leave connections to others: a participant that hangs then holds up only a few of the rest. */
const width = 4

async function inParallel<T>(
  items: readonly T[],
  signal: AbortSignal | undefined,
  act: (item: T) => Promise<void>,
): Promise<void> {
  const rest = items.values()
  const lane = async () => {
    for (const item of rest) {
      if (signal?.aborted) return
      await act(item)
    }
  }
  await Promise.all(Array.from({ length: width }, lane))
}

/** One bad transaction stops neither the round nor the others. What time will not heal is an operator's. */
async function guarded(
  ctx: JobContext,
  report: RecoveryReport,
  { name, attempt }: { name: string; attempt?: string },
  act: () => Promise<Outcome>,
): Promise<void> {
  try {
    report[await act()]++
  } catch (error) {
    if (isPassing(error)) {
      report.left++
      ctx.log.warn(
        { err: error, name },
        'recovery could not finish this transaction now; left for the next round',
      )
      return
    }
    report.failed++
    ctx.log.error({ err: error, name }, 'recovery could not finish this transaction')
    const why = `recovery failed: ${messageOf(error)}`
    if (attempt === undefined) {
      ctx.alerts.raise({ kind: 'stuck', subject: name, message: `${name} stays in doubt: ${why}` })
    } else {
      await setAside(ctx, attempt, why).catch((err: unknown) =>
        ctx.log.error({ err, name }, 'not quarantined'),
      )
    }
  }
}

async function recoverRow(
  ctx: JobContext,
  row: Unfinished,
  first: Listing,
  second: Listing,
): Promise<Outcome> {
  // Our own lease protects only what runs here just now.
  const running = row.owner === ctx.lease.id ? ctx.lease.running.has(row.attempt) : row.ownerAlive
  const reachable = row.participants.every((name) => !second.unavailable.has(name) && ctx.databases.has(name))
  const undecided = row.decision === null && (!running || row.pastDeadline)
  const participants = undecided && reachable ? await factsOf(ctx, row, first, second) : undefined
  const verdict = judge({ status: row.status, running, pastDeadline: row.pastDeadline, participants })
  if (verdict.act === 'abort' && verdict.cause === 'deadline' && (await isHandedOn(ctx, row, running)))
    return 'left'
  switch (verdict.act) {
    case 'leave':
      return 'left'
    case 'drive':
      return drive(ctx, row, second)
    case 'quarantine':
      // The markers were read after the row: what looks finished by hand may have gone its proper way meanwhile.
      await setAside(ctx, row.attempt, verdict.reason, { outcome: 'heuristic' }, row.version)
      return 'left'
    case 'commit':
    case 'abort': {
      const byHand = verdict.act === 'commit' || verdict.cause === 'by-hand'
      const fields = {
        decision: verdict.act,
        reason: verdict.reason,
        ...(verdict.act === 'abort' ? { abortCause: verdict.cause } : {}),
        ...(byHand ? { detail: { heuristic: true, evidence: evidenceOf(participants ?? []) } } : {}),
      }
      const event = verdict.act === 'commit' ? 'decide-commit' : 'decide-abort'
      // Only the very row that was judged: an owner may have come back, another run may have taken it over.
      const only = { status: row.status, version: row.version }
      if (await move(ctx, row.attempt, event, fields, only)) {
        if (byHand)
          ctx.log.error({ name: row.name, reason: verdict.reason }, 'finished by hand, outside Holdfast')
      }
      await reached('recovery.decided')
      const now = await findByAttempt(ctx.databases.primary.sql, row.attempt)
      return now ? drive(ctx, now, second) : 'left'
    }
  }
}

/** A job whose run died goes on with what is pending, and extends the deadline; nobody is in it now, so nobody is late. */
async function isHandedOn(ctx: JobContext, row: Unfinished, running: boolean): Promise<boolean> {
  if (row.status !== 'pending' || running) return false
  return (await ctx.operations.get(row.operation ?? '')?.resumes?.(row.name)) === true
}

/** The markers are read after both listings. */
async function factsOf(
  ctx: JobContext,
  row: DistributedTransaction,
  first: Listing,
  second: Listing,
): Promise<ParticipantFacts[]> {
  const facts: ParticipantFacts[] = []
  for (const name of row.participants) {
    const gid = formatGid({
      installation: ctx.installation,
      policy: 'presumed-abort',
      participant: name,
      attempt: row.attempt,
      name: row.name,
    })
    const seen = [first, second].filter((listing) => listing.found.has(gid)).length
    const marker = readMarker(ctx.databases.get(name), row.attempt)
    facts.push({
      name,
      gid: seen === 2 ? 'listed' : seen === 0 ? 'absent' : 'changing',
      marker: await within(patienceMs, `reading the marker in ${name}`, marker),
    })
  }
  return facts
}

function evidenceOf(
  participants: readonly ParticipantFacts[],
): Record<string, { gid: string; marker: string }> {
  return Object.fromEntries(
    participants.map(({ name, gid, marker }) => [name, { gid, marker: marker ?? 'none' }]),
  )
}

/** Finishes what is decided, on the participants that are there: the others do not keep these locked. */
async function drive(
  ctx: JobContext,
  row: DistributedTransaction,
  { unavailable }: Listing,
): Promise<Outcome> {
  return traced('holdfast.recover', row, async () => {
    const progress =
      row.status === 'committing'
        ? await driveCommit(ctx, row, unavailable)
        : row.status === 'rolling_back'
          ? await driveAbort(ctx, row, unavailable)
          : undefined
    if (progress?.state !== 'committed' && progress?.state !== 'rolled_back') return 'left'
    if (row.quarantine !== null) await liftQuarantine(ctx.databases.primary, row.attempt)
    const outcome = progress.state === 'committed' ? 'committed' : 'rolledBack'
    ctx.telemetry.recovered(outcome, row.name, row.attempt)
    return outcome
  })
}

/** What an operator has to know although recovery goes on. */
function alertOn(ctx: JobContext, listing: Listing, rows: readonly Unfinished[]): void {
  for (const [participant, reason] of listing.unavailable) {
    ctx.log.warn({ participant, reason }, 'cannot be recovered now; left for the next round')
    ctx.alerts.raise({
      kind: 'participant_unreachable',
      subject: participant,
      message: `${participant} cannot be recovered now: ${reason}`,
    })
  }
  const { stuckAfterMs } = ctx.alerts.settings
  const now = ctx.clock.now()
  for (const row of rows) {
    const ageMs = now - row.updatedAt.getTime()
    if (row.decision === null || ageMs < stuckAfterMs) continue
    ctx.alerts.raise({
      kind: 'stuck',
      subject: row.name,
      message: `${row.name} was decided (${row.decision}) ${Math.round(ageMs / 1000)} s ago and is not finished on ${row.participants.join(', ')}; \`holdfast tx show ${row.name}\` says what it blocks`,
    })
  }
  for (const { gid, owner, participant } of listing.found.values()) {
    if (participant.ownerRole === undefined || owner === participant.ownerRole) continue
    ctx.alerts.raise({
      kind: 'foreign_owner',
      subject: gid,
      message: `${gid} on ${participant.name} belongs to ${owner}, not to ${participant.ownerRole}: prepared before the roles were installed, or by somebody else`,
    })
  }
}
