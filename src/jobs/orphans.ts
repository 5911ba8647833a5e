import { findByAttempt } from '../db/distributed-transactions.ts'
import { commitPrepared, rollbackPrepared } from '../db/prepared.ts'
import { recordEvent } from '../db/transaction-events.ts'
import { ownerOf, siblingGid } from '../db/transaction-name.ts'
import { within } from '../db/within.ts'
import { liveOwners } from '../db/workers.ts'
import type { JobContext } from './context.ts'
import { proveAborted } from './finish.ts'
import { type InDoubt, patienceMs, whyUnavailable } from './listing.ts'
import { targetsOf } from './page-name.ts'

/** Gids without an unfinished row: effect-free work, outbox pages, and what was left when its row went. */
export type Outcome = 'committed' | 'rolledBack' | 'left'

export async function liveOwnersOf(ctx: JobContext, orphans: readonly InDoubt[]): Promise<Set<string>> {
  const owners = orphans.map(({ parts }) => ownerOf(parts.attempt))
  return liveOwners(ctx.databases.primary.sql, owners)
}

export async function recoverOrphan(ctx: JobContext, orphan: InDoubt, ownerAlive: boolean): Promise<Outcome> {
  if (orphan.parts.policy === 'commit-forward') return finishOrphan(ctx, orphan, 'committed')
  const row = await findByAttempt(ctx.databases.primary.sql, orphan.parts.attempt)
  // What is set aside is tried again by the deep pass, with its row.
  if (row && (row.decision === null || row.quarantine !== null)) return 'left'
  if (row) return finishOrphan(ctx, orphan, row.decision === 'commit' ? 'committed' : 'rolledBack')
  if (ownerAlive) return 'left'
  return resolveUnrecorded(ctx, orphan)
}

/**
 * Resolves presumed-abort work that has no row: an outbox page, or work whose row was lost. The other participants are
 * fenced first: one that turns out to have committed under this attempt proves commit (the table sink commits its target
 * before the cursor), and after the fences none can commit any more. A page names the participant to ask; of other work
 * any may have taken part. A participant that this config lacks, a standby, and one on a timeline that nobody confirmed
 * cannot be asked, so what may involve it is left.
 */
export async function resolveUnrecorded(ctx: JobContext, orphan: InDoubt): Promise<Outcome> {
  const { attempt } = orphan.parts
  const others = targetsOf(orphan.parts) ?? ctx.databases.names
  for (const name of others) {
    const other = ctx.databases.get(name)
    if (other === orphan.participant) continue
    const unavailable = await within(patienceMs, `asking ${name}`, whyUnavailable(ctx, other))
    if (unavailable !== undefined) return 'left'
    const proved = proveAborted(other, attempt, siblingGid(orphan.parts, other.name))
    if ((await within(patienceMs, `fencing ${name}`, proved)) === 'committed')
      return finishOrphan(ctx, orphan, 'committed')
  }
  return finishOrphan(ctx, orphan, 'rolledBack')
}

async function finishOrphan(
  ctx: JobContext,
  orphan: InDoubt,
  outcome: 'committed' | 'rolledBack',
): Promise<Outcome> {
  const { participant, gid, parts } = orphan
  const finish = outcome === 'committed' ? commitPrepared : rollbackPrepared
  const finished = await within(patienceMs, `finishing on ${participant.name}`, finish(participant, gid))
  // Absent: another recovery was faster and wrote the audit row.
  if (finished === 'absent') return 'left'
  ctx.telemetry.recovered(outcome, parts.name, parts.attempt)
  await recordEvent(ctx.databases.primary.sql, {
    event: outcome === 'committed' ? 'recovered: committed' : 'recovered: rolled back',
    name: parts.name,
    attempt: parts.attempt,
    actor: ctx.lease.id,
    detail: { participant: participant.name },
  })
  return outcome
}
