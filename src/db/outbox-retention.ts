import type { Participant, Sql } from './databases.ts'
import { partitionOf } from './outbox-ring.ts'
import { SQLSTATE, sqlstateOf } from './sqlstate.ts'
import type { Tx } from './tx.ts'

/**
 * Empties slots of the outbox. Two steps, so that no relay waits while millions of rows are looked at:
 *
 * 1. The look, which locks nothing: every row is old, and every cursor needs it no more.
 * 2. Under ACCESS EXCLUSIVE on the partition: nothing came since, and no cursor turned back. Then TRUNCATE.
 *
 * The races, and what closes them:
 * 1. A row in doubt is invisible to any look, and lost by a TRUNCATE. Its writer holds a lock on the partition until it
 *    has committed, so whoever has the partition to himself sees every row.
 * 2. A row that committed after the look: it is outside of the snapshot that was taken before the look.
 * 3. A cursor turned back meanwhile (replay, rebase) needs each row again, the newest as well, which is asked again. One
 *    that was made meanwhile, or forgotten and made anew, changes the list of the cursors.
 * 4. An append that was on its way to the slot waits for the lock and comes into the empty slot.
 */
export type Look = {
  /** every row that is visible in it was looked at */
  snapshot: string
  /** the cursors that there were */
  cursors: string
}

export type Looked = Look | 'young' | 'no sinks' | { behind: string[] }

/** Of every sink and shard where it stands; null where a sink has not begun with a shard. */
const cursorsText = `cursors as materialized (
  select s.sink, n.shard, (
    select p from holdfast.outbox_positions p where p.sink = s.sink and p.shard = n.shard order by p.no desc limit 1
  ) as position
  from (select distinct sink from holdfast.outbox_cursors) s
  cross join (select generate_series(0, holdfast.outbox_shards() - 1)::smallint as shard) n
)`

const needsText = 'holdfast.outbox_removable(c.position, r.id, r.xid) is not true'

/** Reads the slot once, and stops at the first row that keeps it. */
export async function lookAtSlot(tx: Tx, slot: number, retentionMs: number): Promise<Looked> {
  // Some microseconds a row; whoever limits the statements of this login does not mean that.
  await tx`set local statement_timeout = 0`
  // Before the look, in a statement of its own.
  const [before] = await tx<
    Look[]
  >`select pg_current_snapshot()::text as snapshot, ${cursorList(tx)} as cursors`
  if (!before || before.cursors === '') return 'no sinks'
  const behind = await findBehind(tx, slot)
  if (behind.length > 0) return { behind }
  const young = `r.created_at > statement_timestamp() - make_interval(secs => ${retentionMs / 1000})`
  const [keeps] = await tx.unsafe<{ behind: string | null }[]>(`
    with ${cursorsText}
    select b.name as behind from ${partitionOf(slot)} r
    left join lateral (
      select c.sink || '/' || c.shard as name from cursors c where c.shard = r.shard and ${needsText} limit 1
    ) b on true
    where b.name is not null or ${young} limit 1`)
  if (!keeps) return before
  return keeps.behind === null ? 'young' : { behind: [keeps.behind] }
}

/** Cursors that need the newest row of their shard, as sink/shard: whoever is behind is behind that. */
async function findBehind(tx: Tx, slot: number): Promise<string[]> {
  const rows = await tx.unsafe<{ name: string }[]>(`
    with ${cursorsText}
    select c.sink || '/' || c.shard as name from cursors c
    cross join lateral (
      select id, xid from ${partitionOf(slot)} where shard = c.shard order by xid desc limit 1
    ) r
    where ${needsText} order by 1`)
  return rows.map(({ name }) => name)
}

function cursorList(tx: Tx) {
  return tx`(
    select coalesce(string_agg(sink || '/' || shard || ' ' || extract(epoch from created_at), ',' order by sink, shard), '')
    from holdfast.outbox_cursors)`
}

export type Emptied = 'emptied' | 'locked' | 'changed' | { behind: string[] }

/**
 * `locked`: somebody has written or is reading there, and did not end in time. Whoever wants to read waits behind us for as
 * long as we wait: `lockMs`.
 */
export async function emptySlot(
  primary: Participant,
  slot: number,
  look: Look,
  lockMs = 100,
): Promise<Emptied> {
  try {
    return await primary.transaction(async (tx) => {
      await tx.unsafe(`set local lock_timeout = ${lockMs}`)
      // Short ranges of the index, whatever the statistics make of them.
      await tx`set local enable_seqscan = off`
      // A process that stops here must not keep every relay from reading.
      await tx.unsafe('set local idle_in_transaction_session_timeout = 5000')
      await tx.unsafe(`lock table ${partitionOf(slot)} in access exclusive mode`)
      const behind = await findBehind(tx, slot)
      if (behind.length > 0) return { behind }
      if (await changedSince(tx, slot, look)) return 'changed'
      await tx.unsafe(`truncate ${partitionOf(slot)}`)
      return 'emptied'
    })
  } catch (error) {
    if (sqlstateOf(error) === SQLSTATE.lockNotAvailable) return 'locked'
    throw error
  }
}

/** Asked while nobody else can write there: what is outside of the look's snapshot has its xid in these two ranges. */
async function changedSince(tx: Tx, slot: number, { snapshot, cursors }: Look): Promise<boolean> {
  // LIMIT keeps each lookup one of its own in the index.
  const anyRow = (condition: string) =>
    `lateral (select from ${partitionOf(slot)} r where r.shard = s.shard and ${condition} limit 1) found`
  const [row] = await tx.unsafe<{ found: boolean }[]>(
    `with s as materialized (select generate_series(0, holdfast.outbox_shards() - 1)::smallint as shard)
    select exists (
      select from s cross join ${anyRow(
        'r.xid >= pg_snapshot_xmax($1::text::pg_snapshot) and r.xid < pg_snapshot_xmax(pg_current_snapshot())',
      )}
    ) or exists (
      select from s cross join pg_snapshot_xip($1::text::pg_snapshot) x (id) cross join ${anyRow('r.xid = x.id')}
    ) as found`,
    [snapshot],
  )
  const [now] = await tx<{ cursors: string }[]>`select ${cursorList(tx)} as cursors`
  return row?.found !== false || now?.cursors !== cursors
}

/** Who holds a lock on the slot now: prepared transactions by gid and xid, others by their process. */
export async function lockHolders(sql: Sql, slot: number): Promise<{ inDoubt: string[]; live: string[] }> {
  const rows = await sql<{ gid: string | null; name: string }[]>`
    select distinct g.gid, coalesce(g.gid || ' (xid ' || g.transaction || ')', 'pid ' || l.pid, 'nobody known') as name
    from pg_locks l
    left join pg_locks x on l.pid is null and x.pid is null and x.locktype = 'transactionid'
      and x.virtualtransaction = l.virtualtransaction
    left join pg_prepared_xacts g on g.transaction = x.transactionid
    where l.locktype = 'relation' and l.granted and l.relation = to_regclass(${partitionOf(slot)})
      and l.database = (select oid from pg_database where datname = current_database())
    order by name`
  const names = (inDoubt: boolean) =>
    rows.filter(({ gid }) => (gid !== null) === inDoubt).map(({ name }) => name)
  return { inDoubt: names(true), live: names(false) }
}

/** What was done by hand longer ago than that is forgotten; milliseconds. */
export async function removeOldActions(sql: Sql, retentionMs: number): Promise<void> {
  await sql`delete from holdfast.outbox_actions where at < clock_timestamp() - make_interval(secs => ${retentionMs / 1000})`
}
