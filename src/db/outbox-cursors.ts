import type { Participant, Sql } from './databases.ts'

/**
 * Tables outbox_cursors (the lock of each (sink, shard)) and outbox_positions (where each stands).
 *
 * Whoever moves a cursor locks its row first; every read and snapshot comes in a later statement: one that locks and
 * reads at once reads by the snapshot it took before it waited, and loses what committed in between.
 */
export type Cursor = { sink: string; shard: number }

/** What the list of an epoch consists of; see outbox-epochs. */
export type EpochKind = 'events' | 'parked' | 'replay' | 'rebase'

export type Position = {
  no: bigint
  kind: EpochKind
  /** counts the lists */
  epoch: bigint
  base: string
  target: string
  /** no row that is visible in base has a higher id; the same for target */
  baseSequence: bigint
  targetSequence: bigint
  /** how far the list is published */
  lastId: bigint
  /** what lies at or below it was settled by a rebase, whatever its xid */
  floor: bigint
  since: string | null
  sinceFloor: bigint | null
  sinceId: bigint | null
  generation: number
  /** of the server that the snapshots are of; null before the first epoch */
  systemIdentifier: string | null
  attempt: string | null
}

/** The base of a cursor's first epoch: nothing is visible in it, so the first epoch holds all that is there. */
const beginning = '3:3:'

/** How long a cursor's lock is waited for. */
const lockMs = 2_000

export async function countShards(sql: Sql): Promise<number> {
  const [row] = await sql<{ shards: number }[]>`select holdfast.outbox_shards() as shards`
  return row?.shards ?? 1
}

export async function ensureCursor(primary: Participant, { sink, shard }: Cursor): Promise<void> {
  await primary.transaction(async (tx) => {
    const inserted = await tx`
      insert into holdfast.outbox_cursors (sink, shard) values (${sink}, ${shard}) on conflict do nothing returning 1`
    if (inserted.length === 0) return
    await tx`
      insert into holdfast.outbox_positions (sink, shard, no, epoch, base, target, last_id)
      values (${sink}, ${shard}, 0, 0, ${beginning}, ${beginning}, 0)`
  })
}

type PositionRow = Omit<Position, 'no' | 'epoch' | keyof typeof bigints> & Record<string, string | null>
const bigints = { baseSequence: 0, targetSequence: 0, lastId: 0, floor: 0, sinceFloor: 0, sinceId: 0 }

export async function readPosition(sql: Sql, { sink, shard }: Cursor): Promise<Position> {
  const [row] = await sql<PositionRow[]>`
    select no::text, kind, epoch::text, base::text, target::text, base_sequence::text as "baseSequence",
      target_sequence::text as "targetSequence", last_id::text as "lastId", floor::text, since::text,
      since_floor::text as "sinceFloor", since_id::text as "sinceId", generation,
      system_identifier as "systemIdentifier", replace(attempt::text, '-', '') as attempt
    from holdfast.outbox_positions p where sink = ${sink} and shard = ${shard} order by p.no desc limit 1`
  if (!row) throw new Error(`the outbox cursor ${sink}/${shard} has no position`)
  const optional = (value: string | null | undefined) => (value == null ? null : BigInt(value))
  return {
    ...row,
    no: BigInt(row.no ?? 0),
    epoch: BigInt(row.epoch ?? 0),
    baseSequence: BigInt(row.baseSequence ?? 0),
    targetSequence: BigInt(row.targetSequence ?? 0),
    lastId: BigInt(row.lastId ?? 0),
    floor: BigInt(row.floor ?? 0),
    sinceFloor: optional(row.sinceFloor),
    sinceId: optional(row.sinceId),
  }
}

/** The present, as a cursor will want to know it later: first the snapshot, then the sequence. */
export type Present = { snapshot: string; sequence: bigint }

export async function readPresent(sql: Sql): Promise<Present> {
  const [row] = await sql<{ snapshot: string; sequence: string }[]>`
    select s.snapshot, (select last_value from holdfast.outbox_id)::text as sequence
    from (select pg_current_snapshot()::text as snapshot offset 0) s`
  return { snapshot: row?.snapshot ?? '', sequence: BigInt(row?.sequence ?? 0) }
}

/**
 * Starts the epoch of events from `base` to now: locks the cursor, then takes the target, then appends. Asynchronous
 * commit is enough: the PREPARE of the first page flushes it, and nothing of the epoch is published before. Throws
 * SQLSTATE HF001 when the cursor moved on.
 */
export async function startEpoch(
  primary: Participant,
  { sink, shard }: Cursor,
  at: Position,
  base: Present,
): Promise<void> {
  await moveCursor(primary, { sink, shard }, (tx) => [
    tx`set local synchronous_commit = off`,
    tx`select holdfast.start_outbox_epoch(${sink}, ${shard}::smallint, ${String(at.no)}::bigint,
      ${base.snapshot}::text::pg_snapshot, ${String(base.sequence)}::bigint)`,
  ])
}

/**
 * Starts the epoch of the parked events that are due; false when none is. Its list is fixed by the epoch's number in the
 * rows: each key whose first event is due, with all of its events that are not dead.
 */
export async function startParkedEpoch(primary: Participant, cursor: Cursor, at: Position): Promise<boolean> {
  const { sink, shard } = cursor
  return primary.transaction(async (tx) => {
    await tx.unsafe(`set local lock_timeout = ${lockMs}`)
    await tx`select 1 from holdfast.outbox_cursors where sink = ${sink} and shard = ${shard} for update`
    const listed = await tx`
      with heads as (
        select distinct on (coalesce('k' || partitionkey, 'n' || no)) no, partitionkey, dead_at, retry_at
        from holdfast.outbox_parked where sink = ${sink} and shard = ${shard} and (holds_key or dead_at is null)
        order by coalesce('k' || partitionkey, 'n' || no), no
      )
      update holdfast.outbox_parked p set epoch = ${String(at.epoch + 1n)}::bigint from heads h
      where p.sink = ${sink} and p.shard = ${shard} and p.dead_at is null
        and (p.no = h.no or p.partitionkey = h.partitionkey)
        and h.dead_at is null and coalesce(h.retry_at, '-infinity') <= clock_timestamp()`
    if (listed.count === 0) return false
    await tx`select holdfast.turn_outbox(${sink}, ${shard}::smallint, ${String(at.no)}::bigint, 'parked')`
    return true
  })
}

/** Starts the replay that waits for this cursor; false when none does. */
export async function startReplay(primary: Participant, cursor: Cursor, at: Position): Promise<boolean> {
  const { sink, shard } = cursor
  return primary.transaction(async (tx) => {
    await tx.unsafe(`set local lock_timeout = ${lockMs}`)
    await tx`select 1 from holdfast.outbox_cursors where sink = ${sink} and shard = ${shard} for update`
    const [replay] = await tx<{ since: string | null; floor: string | null; from: string | null }[]>`
      delete from holdfast.outbox_replays where sink = ${sink} and shard = ${shard}
      returning since::text, since_floor::text as floor, since_id::text as from`
    if (!replay) return false
    await tx`
      select holdfast.turn_outbox(${sink}, ${shard}::smallint, ${String(at.no)}::bigint, 'replay',
        ${replay.since}::text::pg_snapshot, ${replay.floor}::bigint, ${replay.from}::bigint)`
    return true
  })
}

/** Ends an epoch of another kind than events, at the end of its list. */
export async function endEpoch(primary: Participant, cursor: Cursor, at: Position): Promise<void> {
  const { sink, shard } = cursor
  await moveCursor(primary, cursor, (tx) => [
    tx`select holdfast.turn_outbox(${sink}, ${shard}::smallint, ${String(at.no)}::bigint, 'events')`,
  ])
}

/** Moves the cursor over a page with nothing to publish. */
export async function skipPage(
  primary: Participant,
  { sink, shard }: Cursor,
  at: Position,
  lastId: bigint,
): Promise<void> {
  await moveCursor(primary, { sink, shard }, (tx) => [
    tx`select holdfast.advance_outbox(
      ${sink}, ${shard}::smallint, ${String(at.no)}::bigint, ${String(lastId)}::bigint, null)`,
  ])
}

type PlainTx = Parameters<Parameters<Participant['transaction']>[0]>[0]

/** Locks the cursor, then runs the statements, all on their way at once. */
async function moveCursor(
  primary: Participant,
  { sink, shard }: Cursor,
  statements: (tx: PlainTx) => PromiseLike<unknown>[],
): Promise<void> {
  await primary.transaction(async (tx) => {
    const all = [
      tx.unsafe(`set local lock_timeout = ${lockMs}`),
      tx`select 1 from holdfast.outbox_cursors where sink = ${sink} and shard = ${shard} for update`,
      ...statements(tx),
    ]
    await Promise.all(all)
  })
}

/** Removes all but the newest positions of a cursor, in bulk. */
export async function thinPositions(
  sql: Sql,
  { sink, shard }: Cursor,
  newest: bigint,
  keep = 100n,
): Promise<void> {
  await sql`
    delete from holdfast.outbox_positions
    where sink = ${sink} and shard = ${shard} and no < ${String(newest - keep)}::bigint`
}
