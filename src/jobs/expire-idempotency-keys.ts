import { v7 as uuidv7 } from 'uuid'
import { removeExpiredKeys } from '../db/idempotency-keys.ts'
import { appendJobRun } from '../db/job-runs.ts'
import { stageForward } from '../db/staged-transaction.ts'
import { newAttempt } from '../db/transaction-name.ts'
import type { JobContext } from './context.ts'

/**
 * Removes idempotency keys that are past their expiry, batch by batch, each a staged transaction: effect-free, so in doubt
 * it goes forward. A key that is removed counts as absent already, so nobody waits for this: what it has locked is left
 * out by a second run, and a call that wants such a key asks again for the moment that it takes.
 */
export const expireKeysJob = 'expire-idempotency-keys'

export type ExpiryReport = { keys: number }

const defaultBatchSize = 10_000
/** What is left then waits for the next run. */
const maxBatches = 1_000

export async function expireIdempotencyKeys(
  ctx: JobContext,
  signal: AbortSignal,
  batchSize = defaultBatchSize,
): Promise<ExpiryReport> {
  await ctx.lease.hold()
  const report: ExpiryReport = { keys: 0 }
  for (let left = maxBatches - 1; left >= 0 && !signal.aborted; left--) {
    const removed = await removeBatch(ctx, report.keys, batchSize, left === 0)
    report.keys += removed
    if (removed < batchSize) break
  }
  ctx.log.info(report, 'expired idempotency keys removed')
  return report
}

/** One batch; the last one books the run. */
async function removeBatch(
  { databases, installation, lease }: JobContext,
  before: number,
  batchSize: number,
  isLast: boolean,
): Promise<number> {
  const spec = { installation, attempt: newAttempt(lease.id), name: `expire_keys_${uuidv7()}` }
  return lease.slots.use(() =>
    stageForward(databases.primary, spec, async (tx) => {
      const removed = await removeExpiredKeys(tx, batchSize)
      if (isLast || removed < batchSize) await appendJobRun(tx, expireKeysJob, { keys: before + removed })
      return removed
    }),
  )
}
