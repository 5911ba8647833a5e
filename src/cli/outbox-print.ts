import type { CursorStats, OutboxStats, ParkedEvent } from '../db/outbox-stats.ts'
import { age, section } from './table.ts'

/** How `holdfast outbox` shows things to humans. */
export function describeStats({ cursors, partitions, oldestRowAt }: OutboxStats, now: number): string {
  const parts = [
    section(
      'cursors',
      ['sink', 'shard', 'backlog', 'oldest', 'parked', 'dead', 'circuit', 'list', 'moved'],
      cursors.map((c) => [
        c.sink,
        String(c.shard),
        `${c.backlogIsAtLeast ? '>= ' : ''}${c.backlog.toLocaleString('en-US')}`,
        c.backlog === 0 ? '-' : age(c.oldestUnpublishedSeconds),
        String(c.parked),
        String(c.dead),
        circuit(c, now),
        list(c),
        ago(c.movedAt, now),
      ]),
    ),
    section(
      oldestRowAt === null
        ? 'the outbox: empty'
        : `the outbox, which goes back ${age((now - oldestRowAt.getTime()) / 1_000)}`,
      ['partition', 'rows, about', 'MB'],
      partitions.map((p) => [p.name, p.rows.toLocaleString('en-US'), (p.bytes / 1e6).toFixed(1)]),
    ),
    ...[...new Set(cursors.filter((c) => c.restored).map((c) => c.sink))].map(
      (sink) =>
        `${sink} stands still: the database was restored. See docs/operations.md, then: holdfast outbox rebase ${sink}\n`,
    ),
  ]
  if (cursors.length === 0) parts.unshift('no sink has published anything yet\n')
  return parts.filter((part) => part !== '').join('\n')
}

function circuit({ circuit: { state, since, error } }: CursorStats, now: number): string {
  if (state === 'closed') return state
  const lasts = since === null ? '' : ` for ${age((now - since.getTime()) / 1_000)}`
  return `${state}${lasts}${error === null ? '' : `: ${oneLine(error)}`}`
}

function list({ epoch, replayWaits }: CursorStats): string {
  return replayWaits ? `${epoch}, then a replay` : epoch
}

export function describeParked(
  { events, more }: { events: readonly ParkedEvent[]; more: boolean },
  now: number,
): string {
  if (events.length === 0) return 'nothing is there\n'
  return section(
    more ? 'events (there are more: --limit)' : 'events',
    ['event', 'sink', 'shard', 'type', 'key', 'state', 'tries', 'parked', 'last error'],
    events.map((event) => [
      event.eventId,
      event.sink,
      String(event.shard),
      event.type,
      event.key ?? '-',
      state(event, now),
      String(event.attempts),
      ago(event.parkedAt, now),
      oneLine(event.errors.at(-1)?.reason ?? ''),
    ]),
  )
}

function state({ deadAt, retryAt }: ParkedEvent, now: number): string {
  if (deadAt !== null) return `dead for ${age((now - deadAt.getTime()) / 1_000)}`
  if (retryAt === null) return 'behind another'
  const ms = retryAt.getTime() - now
  return ms > 0 ? `tried in ${age(ms / 1_000)}` : 'due'
}

export function describeTouched(
  verb: 'redrive' | 'discard',
  { sink, events, count }: { sink: string; events?: readonly string[]; count?: number },
  asked: number | undefined,
): string {
  if (events !== undefined) {
    const ids = events.map((id) => `  ${id}\n`).join('')
    return `${sink}: would ${verb} ${of(events.length, asked)}; nothing was changed\n${ids}`
  }
  return `${sink}: ${verb === 'redrive' ? 'redriven' : 'discarded'}: ${of(count ?? 0, asked)}\n`
}

function of(count: number, asked: number | undefined): string {
  const events = `${count} dead event${count === 1 ? '' : 's'}`
  return asked === undefined || asked <= count ? events : `${events} of the ${asked} that were named`
}

function ago(at: Date, now: number): string {
  return `${age((now - at.getTime()) / 1_000)} ago`
}

function oneLine(text: string): string {
  return text.replaceAll(/\s+/g, ' ')
}
