import type { Participant, Sql } from './databases.ts'

/** Table outbox_snapshots: what was visible when, by which a replay finds what came later than a time. */
const everyMs = 60_000

/** The ASCII codes of "HFsnaps". */
const lockKey = '20343659910230131'

/**
 * Records the present, at most once a minute over all processes, and only when events were appended since the last
 * record. Returns whether it did.
 *
 * Each statement has its reason: the lock keeps two processes from both finding the minute over, and whoever comes second
 * finds the record in a later statement. In the record the sequence is read after the snapshot was taken, so that no row
 * that is visible in the snapshot has a higher id.
 */
export async function recordSnapshot(primary: Participant, afterMs = everyMs): Promise<boolean> {
  return primary.transaction(async (tx) => {
    const [lock] = await tx<{ got: boolean }[]>`select pg_try_advisory_xact_lock(${lockKey}::bigint) as got`
    if (lock?.got !== true) return false
    const recorded = await tx`
      insert into holdfast.outbox_snapshots (snapshot, sequence, floor)
      select pg_current_snapshot(), s.last_value,
        coalesce((select max(p.floor) from holdfast.outbox_cursors c cross join lateral (
          select floor from holdfast.outbox_positions where sink = c.sink and shard = c.shard order by no desc limit 1) p), 0)
      from holdfast.outbox_id s
      where not exists (
        select from (select at, sequence from holdfast.outbox_snapshots order by at desc limit 1) newest
        where newest.sequence = s.last_value or newest.at > clock_timestamp() - make_interval(secs => ${afterMs / 1000}))`
    return recorded.count > 0
  })
}

/** Removes what is older than that, but for the newest of them: from it a replay finds all that is kept. */
export async function removeOldSnapshots(sql: Sql, retentionMs: number): Promise<void> {
  await sql`
    delete from holdfast.outbox_snapshots where at < (
      select max(at) from holdfast.outbox_snapshots
      where at < clock_timestamp() - make_interval(secs => ${retentionMs / 1000}))`
}
