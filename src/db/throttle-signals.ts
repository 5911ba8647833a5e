import type { Participant } from './databases.ts'
import { quoteTable } from './quote.ts'
import { gidPrefix } from './transaction-name.ts'

/**
 * What one number says about the server. `unknown` is set where a part of it could not be seen, with the reason: `value`
 * is then the worst of what was seen, or undefined where nothing was.
 */
export type Reading = {
  value: number | undefined
  /** who makes it so, for people: a standby, a session, a slot */
  detail?: string
  unknown?: string
}

/** How the database of a batch fares. */
export type ThrottleSignals = {
  /** milliseconds; the worst physical standby; 0 without one */
  replicaLagMs: Reading
  /** bytes of WAL that the worst standby has not replayed; 0 without one */
  replicaBehindBytes: Reading
  /** sessions that wait for a lock of ours, directly or behind one that does */
  lockWaits: Reading
  /** transactions; how far back anything holds the vacuum of the server */
  xminAge: Reading
  /** those of the tables asked about that a VACUUM, automatic or not, is working on; by the name asked for */
  vacuumed: { tables: string[]; unknown?: string }
  /** bytes of WAL that slots retain or that wait for the archiver, whichever is more */
  walBacklogBytes: Reading
}

type Row = {
  standbys: { name: string; lagMs: number | null; behind: number | null; hidden: boolean }[]
  lockWaits: number
  waiting: number
  xmin: { age: number; holder: string } | null
  vacuumed: string[]
  missing: string[]
  slot: { name: string; bytes: number } | null
  archiving: boolean
  unarchived: number | null
}

/** pg_blocking_pids stops the whole lock manager for a moment each time, so not more of those who wait are asked about. */
const maxWaiters = 100

/**
 * Reads the signals in one statement. `tables`: the ones of the batch, each as `table` or `schema.table` in exact case, as
 * `keyset` takes them.
 *
 * Any login may see all of it but the standbys: of those an ordinary login sees that there are some, and reads
 * `unknown`. What VACUUM works on is hidden too, but not which locks it holds.
 *
 * The archiver's backlog is an estimate: from the last segment that it archived, which a crash of the server forgets.
 *
 * @throws whatever the database answers; 55000 on a standby
 */
export async function readThrottleSignals(
  participant: Participant,
  installation: string,
  tables: readonly string[] = [],
): Promise<ThrottleSignals> {
  const { sql } = participant
  const quoted = tables.map((name) => quoteTable(name.split('.')))
  const [row] = await sql<Row[]>`
    with recursive
    slots as materialized (
      select * from pg_catalog.pg_replication_slots where wal_status is distinct from 'lost'
    ),
    -- Those that never replay (pg_receivewal), take a base backup or decode the log are no standbys.
    standbys as materialized (
      select coalesce(nullif(r.application_name, ''), 'unnamed') as name, r.state is null as hidden,
        extract(epoch from r.replay_lag)::float8 * 1000 as "lagMs",
        -- Not by greatest(), which makes 0 of what is null.
        case when r.replay_lsn >= pg_current_wal_lsn() then 0 else pg_current_wal_lsn() - r.replay_lsn end::float8 as behind
      from pg_catalog.pg_stat_replication r
      where (r.state is null or r.state in ('streaming', 'catchup') and r.replay_lsn is not null)
        and not exists (select from slots s where s.active_pid = r.pid and s.slot_type = 'logical')
    ),
    locks as materialized (select * from pg_catalog.pg_locks),
    waits as materialized (select * from locks where not granted and pid is not null),
    -- In the server's own name for this connection: it is that of all of the participant's.
    ours as materialized (
      select pid from pg_catalog.pg_stat_activity
      where application_name = current_setting('application_name') and datname = current_database()
    ),
    -- A prepared transaction holds its locks without a pid, under one virtualtransaction.
    held as materialized (
      select * from locks where pid is null and virtualtransaction in (
        select l.virtualtransaction from locks l
        join pg_catalog.pg_prepared_xacts p on p.transaction = l.transactionid
        where l.locktype = 'transactionid' and l.granted and l.pid is null
          and starts_with(p.gid, ${gidPrefix(installation)}))
    ),
    blocked as materialized (
      select pid, pg_catalog.pg_blocking_pids(pid) as blockers from
        (select pid from waits order by waitstart nulls last limit ${maxWaiters}) w
    ),
    -- pg_blocking_pids says 0 for any prepared transaction; ours is meant when it holds a lock on the same thing. On a row
    -- that is certain; on a whole table it may be a foreign one beside ours.
    behind (pid) as (
      select b.pid from blocked b
      where b.blockers && array(select pid from ours)
        or 0 = any (b.blockers) and exists (
          select from waits w join held h on
            (w.locktype, w.database, w.relation, w.page, w.tuple, w.virtualxid, w.transactionid, w.classid, w.objid,
              w.objsubid) is not distinct from
            (h.locktype, h.database, h.relation, h.page, h.tuple, h.virtualxid, h.transactionid, h.classid, h.objid,
              h.objsubid)
          where w.pid = b.pid)
      union
      select b.pid from blocked b join behind on behind.pid = any (b.blockers)
    ),
    -- A VACUUM shows an xmin and holds nobody back by it. One that wrote and has no snapshot now holds by its xid. Every
    -- snapshot, the reader's own too, is as old as the oldest xid that it saw running: of equals the one with the xid is meant.
    horizons (age, rank, since, holder) as (
      select greatest(age(backend_xid), age(backend_xmin)),
        case when age(backend_xid) >= coalesce(age(backend_xmin), 0) then 2 else 3 end, xact_start, 'session ' || pid
      from pg_catalog.pg_stat_activity a
      where pid <> pg_backend_pid()
        and not exists (select from pg_catalog.pg_stat_progress_vacuum v where v.pid = a.pid)
      union all
      select age(transaction), 0, prepared, 'prepared transaction ' || gid from pg_catalog.pg_prepared_xacts
      union all
      select greatest(age(xmin), age(catalog_xmin)), 1, null, 'replication slot ' || slot_name from slots
    ),
    asked as materialized (
      select name, to_regclass(quoted) as root
      from unnest(${tables as string[]}::text[], ${quoted}::text[]) as t (name, quoted)
    ),
    parts as materialized (
      select name, root as relation from asked
      union select name, p.relid from asked cross join lateral pg_partition_tree(root) p
    )
    select
      (select coalesce(jsonb_agg(s), '[]') from standbys s) as standbys,
      (select count(distinct pid)::int from behind) as "lockWaits",
      (select count(*)::int from waits) as waiting,
      (select jsonb_build_object('age', age, 'holder', holder) from horizons
        where age is not null order by age desc, rank, since limit 1) as xmin,
      array(
        select distinct p.name from parts p
        join locks l on l.relation = p.relation and l.mode = 'ShareUpdateExclusiveLock' and l.granted
          and l.database = (select oid from pg_catalog.pg_database where datname = current_database())
        join pg_catalog.pg_stat_progress_vacuum v on v.pid = l.pid
        order by 1) as vacuumed,
      array(select name from asked where root is null) as missing,
      (select jsonb_build_object('name', slot_name, 'bytes', pg_current_wal_lsn() - restart_lsn)
        from slots where restart_lsn is not null order by restart_lsn limit 1) as slot,
      current_setting('archive_mode') <> 'off' as archiving,
      (select greatest(div(pg_current_wal_lsn() - '0/0', size) * size - size
          - ('x' || substr(last_archived_wal, 9, 8))::bit(32)::bigint * 4294967296
          - ('x' || substr(last_archived_wal, 17, 8))::bit(32)::bigint * size, 0)::float8
        from pg_catalog.pg_stat_archiver, pg_size_bytes(current_setting('wal_segment_size')) size
        where last_archived_wal ~ '^[0-9A-F]{24}') as unarchived`
  if (!row) throw new Error('the server answered no row')
  return {
    replicaLagMs: lagOf(row),
    replicaBehindBytes: behindOf(row),
    lockWaits: lockWaitsOf(row),
    xminAge: row.xmin ? { value: row.xmin.age, detail: row.xmin.holder } : { value: 0 },
    vacuumed: {
      tables: row.vacuumed,
      ...(row.missing.length > 0 && { unknown: `there is no table ${row.missing.join(', ')}` }),
    },
    walBacklogBytes: backlogOf(row),
  }
}

const hiddenStandbys = 'this login may not see the standbys; grant it pg_read_all_stats (part of pg_monitor)'

/** A standby that has nothing left to replay reports no lag. */
function lagOf({ standbys }: Row): Reading {
  const known = standbys.map((s) => ({ ...s, lagMs: s.lagMs ?? (s.behind === 0 ? 0 : null) }))
  const silent = known.find((s) => s.lagMs === null && !s.hidden)
  return worst(
    known.map(({ name, lagMs }) => ({ name, value: lagMs })),
    standbys.some((s) => s.hidden) ? hiddenStandbys : silent && `standby ${silent.name} has not reported it`,
  )
}

function behindOf({ standbys }: Row): Reading {
  return worst(
    standbys.map(({ name, behind }) => ({ name, value: behind })),
    standbys.some((s) => s.hidden) ? hiddenStandbys : undefined,
  )
}

function worst(
  standbys: readonly { name: string; value: number | null }[],
  unknown: string | undefined,
): Reading {
  const seen = standbys.flatMap(({ name, value }) => (value === null ? [] : [{ name, value }]))
  const [first] = seen.toSorted((a, b) => b.value - a.value)
  if (first) return { value: first.value, detail: `standby ${first.name}`, ...(unknown && { unknown }) }
  return unknown ? { value: undefined, unknown } : { value: 0 }
}

function lockWaitsOf({ lockWaits, waiting }: Row): Reading {
  if (waiting <= maxWaiters) return { value: lockWaits }
  return {
    value: lockWaits,
    unknown: `${waiting} sessions wait for locks, and the first ${maxWaiters} alone were asked for whom`,
  }
}

function backlogOf({ slot, archiving, unarchived }: Row): Reading {
  const bySlot = { value: slot?.bytes ?? 0, ...(slot && { detail: `replication slot ${slot.name}` }) }
  if (!archiving) return bySlot
  if (unarchived === null) {
    return {
      ...bySlot,
      unknown: 'the archiver has archived nothing since the server was made or last crashed',
    }
  }
  return unarchived > bySlot.value ? { value: unarchived, detail: 'archiver' } : bySlot
}
