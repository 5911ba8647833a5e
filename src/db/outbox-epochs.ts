import type { PageHandler } from './connection.ts'
import type { Participant, Sql } from './databases.ts'
import type { Cursor, Position, Present } from './outbox-cursors.ts'
import { OutboxEvent } from './outbox-event.ts'
import { whereCursor } from './outbox-pages.ts'

/**
 * The lists of events that a cursor goes through, by the kind of its epoch (ADR 0004):
 *
 * - events: what is visible in `target` and not in `base`. Two index ranges: the xids that began after base, and the late
 *   ones, which were in progress in base and are visible in target; those are computed first.
 * - parked: the parked rows that carry the epoch's number, by their own numbers.
 * - replay: what the cursor has passed and what was not visible yet at `since` (or comes from `sinceId` on), less what is
 *   parked, which comes from there.
 * - rebase: what was there when the restored database was rebased and was not passed before, by id alone.
 *
 * All values stand in the text, so the plan is made for them (a generic plan walks the table). Read in a transaction of
 * its own, never in the staged one: a prepared reader keeps its locks on every partition.
 */
export async function readEpoch<Page>(
  primary: Participant,
  list: string,
  pageSize: number,
  handler: {
    arrived(events: OutboxEvent[]): Page
    handle: PageHandler<Page>['handle']
  },
): Promise<void> {
  await primary.readPages(list, pageSize, {
    arrived: (rows) => handler.arrived((rows as Row[]).map(toEvent)),
    handle: (page, readAhead) => handler.handle(page, readAhead),
  })
}

/** The query of a list, from where the cursor stands in it. */
export async function epochText(sql: Sql, cursor: Cursor, position: Position): Promise<string> {
  checkSnapshots(position.base, position.target, position.since)
  switch (position.kind) {
    case 'events':
      return eventsText(cursor, position, await lateXids(sql, position.base, position.target))
    case 'parked':
      return parkedText(cursor, position)
    case 'replay':
      return replayText(cursor, position)
    case 'rebase':
      return rebaseText(cursor, position)
  }
}

const columns = 'id, partitionkey, event'

type Row = { id: string; partitionkey: string | null; event: string; attempts?: number; replay?: string }

function toEvent(row: Row): OutboxEvent {
  return new OutboxEvent(row.id, row.partitionkey, row.event, row.attempts, row.replay)
}

function eventsText({ shard }: Cursor, position: Position, late: readonly string[]): string {
  const { base, target } = position
  const above = position.lastId > position.floor ? position.lastId : position.floor
  return `${rangesText(columns, shard, base, target, late, above)} order by id`
}

function rangesText(
  what: string,
  shard: number,
  base: string,
  target: string,
  late: readonly string[],
  above: bigint,
): string {
  const select = `select ${what} from holdfast.outbox where shard = ${Math.trunc(shard)} and id > ${above}`
  const begunAfterBase = `${select}
    and xid >= pg_snapshot_xmax('${base}') and xid < pg_snapshot_xmax('${target}')
    and pg_visible_in_snapshot(xid, '${target}')`
  if (late.length === 0) return begunAfterBase
  return `${begunAfterBase} union all ${select} and xid in (${late.map((xid) => `'${BigInt(xid)}'::xid8`).join(', ')})`
}

function parkedText(cursor: Cursor, { epoch, lastId }: Position): string {
  return `select no as id, partitionkey, event, attempts, replay
    from holdfast.outbox_parked where ${whereCursor(cursor)} and epoch = ${epoch} and no > ${lastId} order by no`
}

function replayText(cursor: Cursor, position: Position): string {
  const { base, since, floor, sinceFloor, sinceId, lastId } = position
  return `select ${columns} from holdfast.outbox o
    where shard = ${Math.trunc(cursor.shard)} and id > ${lastId} and (id <= ${floor} or pg_visible_in_snapshot(xid, '${base}'))
      and ${sinceId === null ? notYetAt(since, sinceFloor ?? 0n, floor) : `id >= ${sinceId}`}
      and not exists (select from holdfast.outbox_parked p where ${whereCursor(cursor)} and p.outbox_id = o.id)
    order by id`
}

/** Snapshots from before the last rebase say nothing about the xids after it, and the other way round. */
function notYetAt(since: string | null, sinceFloor: bigint, floor: bigint): string {
  if (since === null) return 'true'
  const later = `not pg_visible_in_snapshot(xid, '${since}')`
  if (sinceFloor >= floor) return `id > ${floor} and ${later}`
  return `(id > ${floor} or (id > ${sinceFloor} and ${later}))`
}

function rebaseText({ shard }: Cursor, position: Position): string {
  const { base, target, baseSequence, targetSequence, floor, sinceFloor, sinceId, lastId } = position
  return `select ${columns} from holdfast.outbox
    where shard = ${Math.trunc(shard)} and id > ${lastId} and id > ${sinceFloor ?? 0n} and id <= ${floor}
      and not (id <= ${baseSequence} and pg_visible_in_snapshot(xid, '${base}'))
      and not (id <= ${targetSequence} and id <= ${sinceId ?? 0n} and pg_visible_in_snapshot(xid, '${target}'))
    order by id`
}

/** Of these cursors, which stand at the end of their lists, the ones for which something is there. */
export async function findEvents<C extends { shard: number; floor: bigint; base: string }>(
  sql: Sql,
  cursors: readonly C[],
  { snapshot: target }: Present,
): Promise<Set<C>> {
  const waiting = cursors.filter(({ base }) => base !== target)
  if (waiting.length === 0) return new Set()
  const late = new Map<string, readonly string[]>()
  for (const { base } of waiting) {
    if (!late.has(base)) late.set(base, await lateXids(sql, base, target))
  }
  const texts = waiting.map(
    ({ shard, base, floor }, i) =>
      `select ${i} as i where exists (${rangesText('1', shard, base, target, late.get(base) ?? [], floor)})`,
  )
  const found = await sql.unsafe<{ i: number }[]>(texts.join(' union all '))
  return new Set(found.flatMap(({ i }) => waiting[i] ?? []))
}

async function lateXids(sql: Sql, base: string, target: string): Promise<string[]> {
  checkSnapshots(base, target)
  if (base.endsWith(':')) return []
  const rows = await sql<{ xid: string }[]>`
    select xip::text as xid from pg_snapshot_xip(${base}::text::pg_snapshot) xip
    where pg_visible_in_snapshot(xip, ${target}::text::pg_snapshot)`
  return rows.map((row) => row.xid)
}

/** As PostgreSQL prints them: xmin:xmax:xip,xip,… */
const snapshotPattern = /^\d+:\d+:(\d+(,\d+)*)?$/

function checkSnapshots(...snapshots: (string | null)[]): void {
  for (const snapshot of snapshots) {
    if (snapshot !== null && !snapshotPattern.test(snapshot))
      throw new Error(`not a snapshot: ${JSON.stringify(snapshot)}`)
  }
}

/**
 * Whether the database went back in time since a position was written, so that its snapshots say nothing about new
 * transactions: restored from a dump, xids begin anew. pg_upgrade and a move to another server by it keep them.
 */
export async function wasRestored(sql: Sql, { shard }: Cursor, position: Position): Promise<boolean> {
  if (position.systemIdentifier === null) return false
  const { kind, base, target, floor, since } = position
  const last = kind === 'rebase' && since !== null ? since : target
  const [row] = await sql<{ back: boolean; moved: boolean }[]>`
    select pg_snapshot_xmax(pg_current_snapshot()) < pg_snapshot_xmax(${last}::text::pg_snapshot) as back,
      (select system_identifier::text from pg_control_system()) <> ${position.systemIdentifier} as moved`
  if (row?.back === true) return true
  if (row?.moved !== true) return false
  if (kind === 'rebase') return true
  const above = position.baseSequence > floor ? position.baseSequence : floor
  const [odd] = await sql<{ found: boolean }[]>`
    select exists (
      select from holdfast.outbox where shard = ${shard} and id > ${String(floor)}::bigint
        and (xid >= pg_snapshot_xmax(pg_current_snapshot())
          or (id > ${String(above)}::bigint and xid < pg_snapshot_xmax(${base}::text::pg_snapshot)
              and pg_visible_in_snapshot(xid, ${base}::text::pg_snapshot)))) as found`
  return odd?.found === true
}

/**
 * The cursors of these sinks for which a replay waits or a parked event is due. One that stands behind another of its key
 * is not, whatever its own time: the first one's counts.
 */
export async function findOther(sql: Sql, sinks: readonly string[]): Promise<Cursor[]> {
  return sql<Cursor[]>`
    select sink, shard from holdfast.outbox_replays where sink in ${sql(sinks)}
    union
    select sink, shard from holdfast.outbox_parked p
    where sink in ${sql(sinks)} and dead_at is null and retry_at <= clock_timestamp()
      and (partitionkey is null or not exists (
        select from holdfast.outbox_parked e
        where e.sink = p.sink and e.shard = p.shard and e.partitionkey = p.partitionkey and e.no < p.no and e.holds_key))`
}
