import type { Participant } from '../db/databases.ts'
import { emptySlot, lockHolders, lookAtSlot, removeOldActions } from '../db/outbox-retention.ts'
import { moveToSlot, readSlots, type Slot, slots } from '../db/outbox-ring.ts'
import { removeOldSnapshots } from '../db/outbox-snapshots.ts'
import type { Retention } from '../db/retention.ts'
import type { JobContext } from './context.ts'
import { pause } from './pause.ts'

/** What is past its retention and stays all the same; `by`: sinks and shards, gids, or processes. */
type KeptSlot = {
  slot: number
  why: 'no sinks' | 'behind' | 'in doubt' | 'locked' | 'changed'
  by: string[]
}

export type OutboxReport = { emptied: number[]; kept: KeptSlot[] }

const dayMs = 24 * 60 * 60 * 1000

/** Readers come and go: whoever meets one tries again a few times. */
const tries = 5
const betweenMs = 500

/**
 * What retention removes of the outbox and of what belongs to it. A slot goes when all of its rows are older than
 * `retention.outboxMs` and every cursor has passed them; what keeps it longer is logged, and an alert after a day.
 */
export async function removeOldOutbox(
  ctx: JobContext,
  retention: Retention,
  signal: AbortSignal,
): Promise<OutboxReport> {
  const report: OutboxReport = { emptied: [], kept: [] }
  const { outboxMs } = retention
  if (outboxMs === undefined) return report
  const { primary } = ctx.databases
  for (const { slot, current, youngestMs } of await primary.transaction(readSlots)) {
    if (signal.aborted) return report
    // Where new rows go, nobody waits for our lock.
    if (current || youngestMs === null || youngestMs < outboxMs) continue
    const outcome = await removeSlot(primary, slot, outboxMs, signal)
    if (outcome === 'emptied') report.emptied.push(slot)
    else if (outcome !== 'young') {
      report.kept.push(outcome)
      tell(ctx, outcome, youngestMs - outboxMs)
    }
  }
  await moveOn(primary, outboxMs)
  await removeOldSnapshots(primary.sql, outboxMs)
  await removeOldActions(primary.sql, retention.eventsMs)
  if (report.emptied.length > 0) ctx.log.info({ slots: report.emptied }, 'emptied slots of the outbox')
  return report
}

async function removeSlot(
  primary: Participant,
  slot: number,
  retentionMs: number,
  signal: AbortSignal,
): Promise<'emptied' | 'young' | KeptSlot> {
  const look = await primary.transaction((tx) => lookAtSlot(tx, slot, retentionMs))
  if (look === 'young') return look
  if (look === 'no sinks') return { slot, why: look, by: [] }
  if ('behind' in look) return { slot, why: 'behind', by: look.behind }
  for (let left = tries; ; left--) {
    const outcome = await emptySlot(primary, slot, look)
    if (outcome === 'emptied') return outcome
    if (outcome === 'changed') return { slot, why: outcome, by: [] }
    if (outcome !== 'locked') return { slot, why: 'behind', by: outcome.behind }
    const { inDoubt, live } = await lockHolders(primary.sql, slot)
    if (inDoubt.length > 0) return { slot, why: 'in doubt', by: inDoubt }
    if (left <= 1 || signal.aborted) return { slot, why: 'locked', by: live }
    await pause(betweenMs, signal)
  }
}

/**
 * New rows go to an empty slot when the current one has a sixth of the retention in it: seven are in use then, and one is
 * free. Without an empty one the current slot takes more; whatever is in a slot keeps nobody else's.
 */
async function moveOn(primary: Participant, retentionMs: number): Promise<void> {
  await primary.transaction(async (tx) => {
    const all = await readSlots(tx)
    const current = all.find((slot) => slot.current)
    if (!current || current.oldestMs === null || current.oldestMs < retentionMs / 6) return
    const next = nextEmpty(all, current.slot)
    if (next !== undefined) await moveToSlot(tx, next)
  })
}

function nextEmpty(all: readonly Slot[], current: number): number | undefined {
  const empty = new Set(all.filter(({ oldestMs }) => oldestMs === null).map(({ slot }) => slot))
  return slots.map((step) => (current + step) % slots.length).find((slot) => empty.has(slot))
}

function tell({ log, alerts }: JobContext, kept: KeptSlot, overdueMs: number): void {
  log.info({ ...kept, overdueMs: Math.round(overdueMs) }, 'old events stay in the outbox')
  if (overdueMs < dayMs) return
  const days = Math.floor(overdueMs / dayMs)
  const by = kept.by.length > 0 ? `: ${kept.by.join(', ')}` : ''
  alerts.raise({
    kind: 'outbox_kept',
    subject: `outbox slot ${kept.slot}`,
    message: `holdfast.outbox_${kept.slot} has been due for removal for ${days} days, but ${reasons[kept.why]}${by}`,
  })
}

const reasons: Record<KeptSlot['why'], string> = {
  'no sinks': 'no sink has published anything here, and what nobody got is kept',
  behind: 'these have not published all of it (start their workers, or `holdfast outbox forget`)',
  'in doubt': 'prepared transactions have written to it (finish them, see `holdfast tx list`)',
  locked: 'others use it without a break',
  changed: 'its rows or the cursors change all the time',
}
