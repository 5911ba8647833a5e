import { type Moved, quarantine, type Step, type TransitionFields, transition } from '../db/attempts.ts'
import type { Status } from '../db/distributed-transactions.ts'
import type { Json } from '../db/json.ts'
import type { Tx } from '../db/tx.ts'
import type { JobContext } from './context.ts'
import { type Event, isEnd, moveFor } from './transitions.ts'

/** What else must still hold: the row that was judged, or that nobody took it over. */
export type Only = { status?: Status; version?: string; owner?: string }

/**
 * The one way in which an attempt gets from status to status: compare-and-set by the transition table, the audit row in
 * the same transaction, then log line and metric. Undefined when somebody else moved it: read the row again.
 */
export async function move(
  ctx: JobContext,
  attempt: string,
  event: Event,
  fields: TransitionFields = {},
  only: Only = {},
): Promise<Moved | undefined> {
  const step = stepOf(ctx, attempt, event, only)
  if (!step) return undefined
  const [moved] = await ctx.databases.primary.statement((sql) => transition(sql, step, fields))
  if (moved) ctx.telemetry.moved(step.to, attempt, moved)
  return moved
}

/** The same in the caller's transaction; `report` is called once that has committed. */
export async function moveIn(
  ctx: JobContext,
  tx: Tx,
  attempt: string,
  event: Event,
  fields: TransitionFields = {},
  only: Only = {},
): Promise<{ moved: Moved; report: () => void } | undefined> {
  const step = stepOf(ctx, attempt, event, only)
  if (!step) return undefined
  const [moved] = await transition(tx, step, fields)
  return moved && { moved, report: () => ctx.telemetry.moved(step.to, attempt, moved) }
}

/** Undefined where the event cannot happen to what was judged. */
function stepOf(
  ctx: JobContext,
  attempt: string,
  event: Event,
  { status: judged, version, owner }: Only,
): Step | undefined {
  const { from, to } = moveFor(event)
  const allowed = judged === undefined ? from : from.filter((status) => status === judged)
  if (allowed.length === 0) return undefined
  // The last step only says what has happened: whoever finds the row where it was before finds all participants durably at
  // their end, and takes it again.
  const durable = !isEnd(to)
  return { attempt, from: allowed, to, actor: ctx.lease.id, version, owner, durable }
}

/** Marks an attempt for an operator, and raises the alert. */
export async function setAside(
  ctx: JobContext,
  attempt: string,
  why: string,
  evidence: Record<string, Json> = {},
  version?: string,
): Promise<void> {
  const row = await quarantine(ctx.databases.primary, attempt, ctx.lease.id, why, evidence, version)
  if (row) {
    ctx.alerts.raise({
      kind: 'requires_manual_intervention',
      subject: row.name,
      message: `${row.name} requires manual intervention: ${why}. \`holdfast tx show ${row.name}\` says more`,
    })
  }
}
