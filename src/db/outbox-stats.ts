import type { Sql } from './databases.ts'
import { readBacklog, type Standing } from './outbox-backlog.ts'
import type { CircuitState } from './outbox-circuits.ts'
import type { Cursor, EpochKind } from './outbox-cursors.ts'

export type CursorStats = Cursor & {
  /**
   * Visible events that the cursor has not passed. The database does not know the routes: events that no route sends to
   * this sink count until the cursor has passed over them.
   */
  backlog: number
  /** there may be more: as many rows as may be looked at were looked at */
  backlogIsAtLeast: boolean
  /** since the oldest of them was appended; 0 when there is none, a lower bound where the backlog is one */
  oldestUnpublishedSeconds: number
  /** wait to be tried again, or behind another event of their key */
  parked: number
  /** given up: to be redriven or discarded by hand */
  dead: number
  /** what the relay last said of the sink; `since` is null where it never said anything */
  circuit: { state: CircuitState; since: Date | null; error: string | null }
  /** what its list consists of now */
  epoch: EpochKind
  /** a replay starts when the cursor comes to the end of its list */
  replayWaits: boolean
  movedAt: Date
  /** the database went back in time: the cursor stops until `holdfast outbox rebase` */
  restored: boolean
}

export type OutboxStats = {
  cursors: CursorStats[]
  /** of the table; rows as the server estimates them */
  partitions: { name: string; rows: number; bytes: number }[]
  /** when the oldest row that is kept was appended, near enough: the lowest xid of each shard is looked at */
  oldestRowAt: Date | null
}

/**
 * The outbox in numbers, by sink and shard. Cheap whatever the outbox holds: of each cursor only what lies outside its
 * snapshots is looked at, at most `bound` rows at a time. Not one moment: a cursor that moves meanwhile counts as it
 * stood, and events of transactions in doubt count once they commit.
 */
export async function readOutboxStats(sql: Sql, bound = 100_000): Promise<OutboxStats> {
  const cursors: CursorStats[] = []
  for (const row of await readStandings(sql)) {
    const { events, atLeast, oldestSeconds } = await readBacklog(sql, row, bound)
    const { sink, shard, parked, dead, circuit, kind, replayWaits, movedAt, restored } = row
    cursors.push({
      sink,
      shard,
      backlog: events,
      backlogIsAtLeast: atLeast,
      oldestUnpublishedSeconds: oldestSeconds,
      parked,
      dead,
      circuit,
      epoch: kind,
      replayWaits,
      movedAt,
      restored,
    })
  }
  return { cursors, partitions: await readPartitions(sql), oldestRowAt: await readOldestRow(sql) }
}

type StandingRow = Standing &
  Pick<CursorStats, 'sink' | 'parked' | 'dead' | 'circuit' | 'replayWaits' | 'movedAt'>

/** Exported for the test that looks at the plans. */
export async function readStandings(sql: Sql): Promise<StandingRow[]> {
  const rows = await sql<(Omit<StandingRow, 'circuit'> & CircuitRow)[]>`
    select c.sink, c.shard, p.kind, p.base::text, p.target::text, p.base_sequence::text as "baseSequence",
      p.target_sequence::text as "targetSequence", p.last_id::text as "lastId", p.floor::text, p.since::text,
      p.since_floor::text as "sinceFloor", p.since_id::text as "sinceId", p.at as "movedAt", p.at::text as "movedAtText",
      pg_snapshot_xmax(p.base)::text as "afterBase", pg_snapshot_xmax(p.target)::text as "afterTarget",
      pg_snapshot_xmax(p.since)::text as "afterSince", pg_snapshot_xmax(pg_current_snapshot())::text as "afterNow",
      array(select x::text from pg_snapshot_xip(p.base) x) as "runningInBase",
      array(select x::text from pg_snapshot_xip(p.base) x where pg_visible_in_snapshot(x, p.target)) as "lateInTarget",
      array(select x::text from pg_snapshot_xip(p.target) x) as "runningInTarget",
      array(select x::text from pg_snapshot_xip(p.since) x) as "runningInSince",
      p.kind <> 'rebase' and pg_snapshot_xmax(pg_current_snapshot()) < pg_snapshot_xmax(p.target) as restored,
      parked.waiting as parked, parked.dead,
      k.state as "circuitState", k.since as "circuitSince", k.error as "circuitError",
      exists (select from holdfast.outbox_replays r where r.sink = c.sink and r.shard = c.shard) as "replayWaits"
    from holdfast.outbox_cursors c
    cross join lateral (
      select * from holdfast.outbox_positions where sink = c.sink and shard = c.shard order by no desc limit 1
    ) p
    cross join lateral (
      select count(*) filter (where dead_at is null)::int as waiting, count(*) filter (where dead_at is not null)::int as dead
      from holdfast.outbox_parked where sink = c.sink and shard = c.shard
    ) parked
    left join holdfast.outbox_circuits k on k.sink = c.sink and k.shard = c.shard
    order by c.sink, c.shard`
  return rows.map(({ circuitState, circuitSince, circuitError, ...row }) => ({
    ...row,
    circuit: { state: circuitState ?? 'closed', since: circuitSince, error: circuitError },
  }))
}

type CircuitRow = {
  circuitState: CircuitState | null
  circuitSince: Date | null
  circuitError: string | null
}

/** Rows are never removed one by one, so what the statistics count as live is near what is there. */
async function readPartitions(sql: Sql): Promise<OutboxStats['partitions']> {
  return sql<OutboxStats['partitions']>`
    select c.relname::text as name, greatest(s.n_live_tup, c.reltuples, 0)::float8 as rows,
      pg_total_relation_size(c.oid)::float8 as bytes
    from pg_inherits i
    join pg_class c on c.oid = i.inhrelid
    left join pg_stat_all_tables s on s.relid = c.oid
    where i.inhparent = 'holdfast.outbox'::regclass order by c.relname`
}

async function readOldestRow(sql: Sql): Promise<Date | null> {
  const [row] = await sql<{ at: Date | null }[]>`
    select min(first.created_at) as at from generate_series(0, holdfast.outbox_shards() - 1) shard
    cross join lateral (
      select created_at from holdfast.outbox where outbox.shard = shard.shard::smallint order by xid limit 1
    ) first`
  return row?.at ?? null
}

/** One event of the parked list; never its data. */
export type ParkedEvent = Cursor & {
  /** its place in the list */
  no: string
  eventId: string
  type: string
  /** the later events of this key wait for it */
  key: string | null
  attempts: number
  /** what the sink said, the newest last; `at` as ISO 8601 */
  errors: { at: string; reason: string }[]
  parkedAt: Date
  /** when it is tried again; null: it waits behind another, or is dead */
  retryAt: Date | null
  deadAt: Date | null
}

export type ParkedFilter = {
  sink?: string
  /** true: only the dead, false: only those that wait; default both */
  dead?: boolean
  limit: number
  /** the last one of the page before */
  after?: Pick<ParkedEvent, 'sink' | 'shard' | 'no'>
}

/** What sinks rejected and what waits behind it, by sink and shard in the order in which it was parked. */
export async function listParked(sql: Sql, filter: ParkedFilter): Promise<ParkedEvent[]> {
  const { sink = null, dead = null, limit, after } = filter
  return sql<ParkedEvent[]>`
    select sink, shard, no::text, event_id as "eventId", type, partitionkey as key, attempts, errors,
      parked_at as "parkedAt", retry_at as "retryAt", dead_at as "deadAt"
    from holdfast.outbox_parked
    where (${sink}::text is null or sink = ${sink}) and (${dead}::boolean is null or (dead_at is not null) = ${dead})
      and (${after === undefined} or (sink, shard, no) > (${after?.sink ?? ''}, ${after?.shard ?? 0}::smallint, ${after?.no ?? '0'}::bigint))
    order by sink, shard, no limit ${limit}`
}
