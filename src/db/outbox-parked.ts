import type { Sql } from './databases.ts'
import type { Cursor } from './outbox-cursors.ts'
import type { OutboxEvent } from './outbox-event.ts'
import { whereCursor } from './outbox-pages.ts'

/** Table outbox_parked: what sinks rejected, and the later events of the same keys. */

/** A rejection as it is recorded. `retryMs`: when it is tried again; absent when it is dead. */
export type Rejected = { reason: string; dead: boolean; retryMs?: number; holdsKey: boolean }

/** `rejected` absent: it waits behind another event of its key. */
export type Parked = { event: OutboxEvent; rejected?: Rejected }

/** The keys whose later events have to wait. */
export async function readHeldKeys(sql: Sql, { sink, shard }: Cursor): Promise<Set<string>> {
  const rows = await sql<{ key: string }[]>`
    select distinct partitionkey as key from holdfast.outbox_parked
    where sink = ${sink} and shard = ${shard} and partitionkey is not null and holds_key`
  return new Set(rows.map((row) => row.key))
}

/** In a parked epoch that was interrupted: the keys of which an event was rejected again before `lastId`. */
export async function readHeldInEpoch(
  sql: Sql,
  { sink, shard }: Cursor,
  epoch: bigint,
  lastId: bigint,
): Promise<Set<string>> {
  const rows = await sql<{ key: string }[]>`
    select distinct partitionkey as key from holdfast.outbox_parked
    where sink = ${sink} and shard = ${shard} and epoch = ${String(epoch)}::bigint and no <= ${String(lastId)}::bigint
      and partitionkey is not null and holds_key`
  return new Set(rows.map((row) => row.key))
}

/** Parks events, in their order. `replay`: the epoch, when it is one. */
export function parkText(
  { sink, shard }: Cursor,
  parked: readonly Parked[],
  replay: bigint | undefined,
): string {
  const rows = parked.map(({ event, rejected }) => toRow(event, rejected)).join(',')
  return `INSERT INTO holdfast.outbox_parked (sink, shard, outbox_id, event_id, type, partitionkey, event, attempts, errors,
      retry_at, dead_at, holds_key, replay)
    SELECT '${sink}', ${Math.trunc(shard)}, id, event_id, type, partitionkey, event, attempts, ${errorsOf('reason')},
      ${retryAt}, ${deadAt}, holds, ${replay ?? 'NULL'}
    FROM ROWS FROM (jsonb_to_recordset(${quoteText(`[${rows}]`)}::jsonb) AS (id bigint, event_id uuid, type text,
      partitionkey text, event text, attempts int, reason text, retry_ms float8, dead boolean, holds boolean))
      WITH ORDINALITY
      AS e(id, event_id, type, partitionkey, event, attempts, reason, retry_ms, dead, holds, position)
    ORDER BY position`
}

/** Takes delivered events out. `nos` are parking numbers. */
export function unparkText(cursor: Cursor, nos: readonly string[]): string {
  return `DELETE FROM holdfast.outbox_parked WHERE ${whereCursor(cursor)} AND no = ANY ('{${nos.map((no) => BigInt(no)).join(',')}}')`
}

/** Records that parked events were rejected once more. */
export function rejectAgainText(
  cursor: Cursor,
  rejections: readonly { no: string; rejected: Rejected }[],
): string {
  const rows = rejections.map(({ no, rejected }) => ({ no, ...toFields(rejected) }))
  return `UPDATE holdfast.outbox_parked SET attempts = attempts + 1, errors = errors || ${errorsOf('e.reason')},
      retry_at = ${retryAt}, dead_at = ${deadAt}, holds_key = holds
    FROM jsonb_to_recordset(${quoteText(JSON.stringify(rows))}::jsonb)
      AS e(no bigint, reason text, retry_ms float8, dead boolean, holds boolean)
    WHERE ${whereCursor(cursor)} AND outbox_parked.no = e.no`
}

const retryAt = `clock_timestamp() + make_interval(secs => retry_ms / 1000)`
const deadAt = `CASE WHEN dead THEN clock_timestamp() END`

function errorsOf(reason: string): string {
  return `CASE WHEN ${reason} IS NULL THEN '[]' ELSE jsonb_build_array(jsonb_build_object('at', clock_timestamp(), 'reason', ${reason})) END`
}

function toFields(rejected: Rejected | undefined) {
  return {
    reason: rejected ? toStorable(rejected.reason) : null,
    retry_ms: rejected?.retryMs ?? null,
    dead: rejected?.dead ?? false,
    holds: rejected?.holdsKey ?? true,
  }
}

/** jsonb takes neither U+0000 nor half a character, which the cut may leave; a page that cannot be staged holds its shard. */
function toStorable(reason: string): string {
  return reason.slice(0, 1_000).toWellFormed().replaceAll('\0', '\ufffd')
}

function toRow(event: OutboxEvent, rejected: Rejected | undefined): string {
  const { id, eventId, type, partitionkey, json } = event
  const fields = { id, event_id: eventId, type, partitionkey, event: json }
  return JSON.stringify({ ...fields, attempts: rejected ? 1 : 0, ...toFields(rejected) })
}

/** A text literal, whatever standard_conforming_strings says (PostgreSQL manual, 4.1.2.2). */
function quoteText(text: string): string {
  const quoted = `'${text.replaceAll("'", "''")}'`
  return quoted.includes('\\') ? ` E${quoted.replaceAll('\\', '\\\\')}` : quoted
}
