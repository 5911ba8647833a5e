import {
  claimCompensation,
  completeCompensation,
  failCompensation,
  listDueCompensations,
} from '../db/compensations.ts'
import { messageOf } from '../db/message-of.ts'
import { reached } from '../db/steps.ts'
import { recordEvent } from '../db/transaction-events.ts'
import type { JobContext } from './context.ts'
import { setAside } from './move.ts'
import { traced } from './tracing.ts'

/**
 * Compensation: undoes outside the databases what effects may have done, for a rollback that is proved. It is kept in
 * the attempt's row until it succeeded, so it is done by whichever process comes; at least once, with an idempotency key.
 *
 * Whoever compensates owns the attempt for as long as its lease lives. A second one that takes over then may overlap
 * with a first that is cut off but still runs: that is what the key is for.
 */
/** After so many failures an operator has to look. */
export const maxCompensationFailures = 10
const firstWaitMs = 1_000
const maxWaitMs = 10 * 60 * 1000

/** `failed`: it is due again */
export type CompensationOutcome = 'done' | 'failed' | 'given-up' | 'not-ours'

/** `limitMs`: after which the compensation's signal aborts. */
export async function compensate(
  ctx: JobContext,
  attempt: string,
  signal: AbortSignal,
  limitMs = 60_000,
): Promise<CompensationOutcome> {
  await ctx.lease.hold()
  const { primary } = ctx.databases
  const row = await claimCompensation(primary.sql, attempt, ctx.lease.id)
  if (!row) return 'not-ours'
  await reached('compensation.claimed')
  const undo = ctx.operations.get(row.operation ?? '')?.compensate
  const audit = (event: string, detail: Record<string, string | number>) =>
    recordEvent(primary.sql, {
      event,
      name: row.name,
      attempt,
      actor: ctx.lease.id,
      correlationId: row.correlationId,
      detail,
    })
  // Not AbortSignal.timeout: within AbortSignal.any nothing holds it, and collected as garbage it never fires.
  const limit = new AbortController()
  const timer = setTimeout(() => limit.abort(new Error(`it took longer than ${limitMs} ms`)), limitMs)
  try {
    if (!undo) throw new Error(`this process knows no compensation for the operation ${row.operation}`)
    await traced('holdfast.compensate', row, async () => {
      await undo({
        name: row.name,
        attempt,
        staged: row.staged,
        metadata: row.metadata,
        reason: row.reason,
        idempotencyKey: `${attempt}:compensate`,
        signal: AbortSignal.any([signal, limit.signal]),
        log: ctx.log.child({ name: row.name, attempt }),
      })
    })
    await reached('compensation.ran')
    if (!(await completeCompensation(primary, row, ctx.lease.id))) {
      ctx.log.info({ name: row.name, attempt }, 'compensated, and due again: a run came back meanwhile')
      return 'failed'
    }
    await audit('compensated', { operation: row.operation ?? '' })
    ctx.log.info({ name: row.name, attempt }, 'compensated')
    return 'done'
  } catch (error) {
    const failures = row.failures + 1
    const giveUp = failures >= maxCompensationFailures
    const waitMs = Math.min(maxWaitMs, firstWaitMs * 2 ** row.failures)
    await failCompensation(primary, attempt, ctx.lease.id, error, giveUp ? 'give-up' : { waitMs })
    await audit('compensation_failed', { error: messageOf(error), failures })
    ctx.log.warn({ err: error, name: row.name, attempt, failures }, 'compensation failed')
    if (!giveUp) return 'failed'
    await setAside(ctx, attempt, whyGivenUp(failures, error))
    return 'given-up'
  } finally {
    clearTimeout(timer)
  }
}

/** What an operator is told of a compensation that is not tried again. */
export function whyGivenUp(failures: number, error: unknown): string {
  return `its compensation failed ${failures} times, last: ${messageOf(error)}`
}

/** Those whose operation this process knows; the others are another's. */
export async function dueCompensations(ctx: JobContext): Promise<{ attempt: string; name: string }[]> {
  const due = await listDueCompensations(ctx.databases.primary.sql)
  return due.filter(({ operation }) => ctx.operations.get(operation)?.compensate !== undefined)
}
