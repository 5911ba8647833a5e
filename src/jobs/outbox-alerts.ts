import { type CursorStats, type OutboxStats, readOutboxStats } from '../db/outbox-stats.ts'
import type { JobContext } from './context.ts'

/**
 * Looks at the outbox once: sets its gauges, and raises an alert for each sink that has not taken an event for longer than
 * `alerts.stuckAfterMs` or has dead events.
 */
export async function watchOutbox(
  ctx: Pick<JobContext, 'databases' | 'telemetry' | 'alerts'>,
): Promise<OutboxStats> {
  const stats = await readOutboxStats(ctx.databases.primary.sql)
  ctx.telemetry.outbox.observe(stats)
  for (const [sink, cursors] of bySink(stats.cursors)) {
    const [worst] = cursors.toSorted((a, b) => b.oldestUnpublishedSeconds - a.oldestUnpublishedSeconds)
    if (worst && worst.oldestUnpublishedSeconds * 1_000 > ctx.alerts.settings.stuckAfterMs)
      ctx.alerts.raise({ kind: 'outbox_lag', subject: sink, message: lagMessage(worst) })
    const dead = cursors.reduce((sum, cursor) => sum + cursor.dead, 0)
    if (dead > 0) {
      const message = `${dead} events to ${sink} were given up: \`holdfast outbox dead --sink ${sink}\`, then redrive or discard them`
      ctx.alerts.raise({ kind: 'outbox_dead', subject: sink, message })
    }
  }
  return stats
}

function lagMessage({ sink, shard, restored, circuit, ...cursor }: CursorStats): string {
  const waits = `${cursor.backlogIsAtLeast ? 'at least ' : ''}${cursor.backlog} events wait for ${sink} on shard ${shard}, the oldest for ${Math.floor(cursor.oldestUnpublishedSeconds)} seconds`
  if (restored)
    return `${waits}: the database was restored, and the cursor stops until \`holdfast outbox rebase ${sink}\` (docs/operations.md)`
  const why = circuit.state === 'closed' ? '' : `; its circuit is ${circuit.state}`
  return `${waits}${why}. \`holdfast outbox stats\` says more; a sink that is no longer configured is forgotten by \`holdfast outbox forget ${sink}\``
}

function bySink(cursors: readonly CursorStats[]): Map<string, CursorStats[]> {
  const sinks = new Map<string, CursorStats[]>()
  for (const cursor of cursors) sinks.set(cursor.sink, [...(sinks.get(cursor.sink) ?? []), cursor])
  return sinks
}
