import { v7 as uuidv7 } from 'uuid'
import { listUnsettledAttempts } from '../db/distributed-transactions.ts'
import { removeOldSeen } from '../db/inbox-seen.ts'
import { appendJobRun } from '../db/job-runs.ts'
import { type Removed, type Retention, removeOld, removeOldMarkers } from '../db/retention.ts'
import { stageForward } from '../db/staged-transaction.ts'
import { reached } from '../db/steps.ts'
import { newAttempt } from '../db/transaction-name.ts'
import { removeDeadLeases } from '../db/workers.ts'
import type { JobContext } from './context.ts'
import { type RecoveryReport, recover } from './recovery.ts'
import { removeOldOutbox } from './remove-old-outbox.ts'

/**
 * The hourly deep pass: recovery, also of what was quarantined after its decision; then what retention removes, and the
 * record that the job ran, in staged transactions of their own: effect-free, so in doubt they go forward.
 */
export const cleanUpJob = 'clean-stale-transactions'

/** `partitions`: of the outbox, emptied. */
export type CleanUpReport = RecoveryReport & Removed & { leases: number; partitions: number }

const batchSize = 5_000
const maxBatches = 50

export async function cleanStaleTransactions(
  ctx: JobContext,
  retention: Retention,
  signal: AbortSignal,
): Promise<CleanUpReport> {
  await ctx.lease.hold()
  const recovered = await recover(ctx, { signal, deep: true })
  await reached('cleanup.recovered')
  const leases = await removeDeadLeases(ctx.databases.primary.sql)
  const { emptied } = await removeOldOutbox(ctx, retention, signal)
  const none: Removed = { transactions: 0, events: 0, runs: 0, jobs: 0, markers: 0, seen: 0 }
  const report: CleanUpReport = { ...recovered, leases, partitions: emptied.length, ...none }
  report.markers += await removeMarkersElsewhere(ctx, retention)
  report.seen += await removeSeenElsewhere(ctx, retention, signal)
  for (let batch = 0; batch < maxBatches && !signal.aborted; batch++) {
    const removed = await book(ctx, retention, report)
    report.transactions += removed.transactions
    report.events += removed.events
    report.runs += removed.runs
    report.jobs += removed.jobs
    report.markers += removed.markers
    report.seen += removed.seen
    if (Math.max(...Object.values(removed)) < batchSize) break
  }
  ctx.log.info(report, 'stale transactions cleaned')
  return report
}

/** One batch of removals and the record of the run, in one staged transaction. */
async function book(ctx: JobContext, retention: Retention, report: CleanUpReport): Promise<Removed> {
  const { databases, installation, lease } = ctx
  const spec = { installation, attempt: newAttempt(lease.id), name: `cleanup_${uuidv7()}` }
  return lease.slots.use(() =>
    stageForward(databases.primary, spec, async (tx) => {
      const removed = await removeOld(tx, retention, batchSize)
      await appendJobRun(tx, cleanUpJob, report)
      return removed
    }),
  )
}

/** A participant that cannot be reached keeps its old markers for an hour more. */
async function removeMarkersElsewhere(ctx: JobContext, retention: Retention): Promise<number> {
  const unsettled = await listUnsettledAttempts(ctx.databases.primary.sql)
  let removed = 0
  for (const participant of ctx.databases.all) {
    if (participant === ctx.databases.primary) continue
    try {
      removed += await removeOldMarkers(participant, retention.transactionsMs, unsettled, batchSize)
    } catch (err) {
      ctx.log.warn({ err, participant: participant.name }, 'old markers stay for now')
    }
  }
  return removed
}

/** Batch by batch, each in a transaction of its own: consumers see more in an hour than one batch holds. */
async function removeSeenElsewhere(
  { databases, log }: JobContext,
  { seenMs }: Retention,
  signal: AbortSignal,
): Promise<number> {
  if (seenMs === undefined) return 0
  let total = 0
  for (const participant of databases.all) {
    if (participant === databases.primary) continue
    try {
      for (let batch = 0; batch < maxBatches && !signal.aborted; batch++) {
        const removed = await participant.transaction((tx) => removeOldSeen(tx, seenMs, batchSize))
        total += removed
        if (removed < batchSize) break
      }
    } catch (err) {
      log.warn({ err, participant: participant.name }, 'what consumers saw long ago stays for now')
    }
  }
  return total
}
