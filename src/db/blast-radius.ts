import type { Sql } from './databases.ts'
import type { PreparedTransaction } from './prepared.ts'

/** What one prepared transaction keeps from others, for whoever has to decide how urgent it is. */
export type BlastRadius = {
  /** since it was prepared, by the server's clock */
  ageSeconds: number
  /** how many transactions began since it did: as far back the whole cluster's vacuum is held */
  ageTransactions: number
  locks: HeldLock[]
  /** the tables that it holds locks on */
  tables: string[]
  /** longest wait first, at most 50 */
  waiters: Waiter[]
  /** how many wait altogether */
  waiting: number
}

/** Locks on indexes are left out: they go with their table's. Row locks show as those on `transactionid`. */
type HeldLock = {
  /** `relation`, `transactionid`, `advisory`, … */
  type: string
  relation: string | null
  mode: string
  count: number
}

/** A session that waits for it; never what it says, which may hold personal data. */
type Waiter = {
  pid: number
  application: string
  user: string | null
  /** false: it waits behind another that waits */
  direct: boolean
  /** what kind of lock it waits for, and on which relation */
  type: string
  relation: string | null
  /** null where this login may not see it */
  querySeconds: number | null
  waitSeconds: number | null
}

/**
 * A prepared transaction has no process: its locks stand in pg_locks without a pid, together under one
 * `virtualtransaction`, which is found by the lock that it holds on its own xid. (That is -1/<xid> only after a restart.)
 */
const lockTables = (sql: Sql, xid: string) => sql`
  locks as materialized (select * from pg_catalog.pg_locks),
  mine as materialized (
    select * from locks where pid is null and virtualtransaction = (
      select virtualtransaction from locks
      where locktype = 'transactionid' and transactionid = ${xid}::text::xid and granted and pid is null))`

/** Undefined: it is not prepared in this database (any more). */
export async function readBlastRadius(sql: Sql, gid: string): Promise<BlastRadius | undefined> {
  const [prepared] = await sql<{ xid: string; ageSeconds: number; ageTransactions: number }[]>`
    select transaction::text as xid, age(transaction)::int as "ageTransactions",
      extract(epoch from clock_timestamp() - prepared)::float8 as "ageSeconds"
    from pg_catalog.pg_prepared_xacts where gid = ${gid} and database = current_database()`
  if (!prepared) return undefined
  const { xid, ageSeconds, ageTransactions } = prepared
  const [held, waiters] = [await readLocks(sql, xid), await readWaiters(sql, xid)]
  return {
    ageSeconds,
    ageTransactions,
    locks: held.map(({ isTable: _isTable, ...lock }) => lock),
    tables: [...new Set(held.flatMap(({ isTable, relation }) => (isTable && relation ? [relation] : [])))],
    waiters: waiters.map(({ waiting: _waiting, ...waiter }) => waiter),
    waiting: waiters[0]?.waiting ?? 0,
  }
}

function readLocks(sql: Sql, xid: string): Promise<(HeldLock & { isTable: boolean })[]> {
  return sql<(HeldLock & { isTable: boolean })[]>`
    with ${lockTables(sql, xid)}
    select m.locktype as type, m.mode, count(*)::int as count,
      coalesce(quote_ident(n.nspname) || '.' || quote_ident(c.relname), 'relation ' || m.relation) as relation,
      coalesce(c.relkind in ('r', 'p', 'm', 'f') and n.nspname <> 'pg_catalog', false) as "isTable"
    from mine m
    left join pg_catalog.pg_class c on c.oid = m.relation
    left join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where c.relkind is null or c.relkind not in ('i', 'I')
    group by 1, 2, 4, 5 order by relation nulls last, mode`
}

/** Which mode of a lock keeps which others out (the manual's table of conflicting lock modes). */
const conflicts = `conflicts (held, wanted) as (values
  ('AccessShareLock', '{AccessExclusiveLock}'::text[]),
  ('RowShareLock', '{ExclusiveLock,AccessExclusiveLock}'),
  ('RowExclusiveLock', '{ShareLock,ShareRowExclusiveLock,ExclusiveLock,AccessExclusiveLock}'),
  ('ShareUpdateExclusiveLock',
    '{ShareUpdateExclusiveLock,ShareLock,ShareRowExclusiveLock,ExclusiveLock,AccessExclusiveLock}'),
  ('ShareLock',
    '{RowExclusiveLock,ShareUpdateExclusiveLock,ShareRowExclusiveLock,ExclusiveLock,AccessExclusiveLock}'),
  ('ShareRowExclusiveLock',
    '{RowExclusiveLock,ShareUpdateExclusiveLock,ShareLock,ShareRowExclusiveLock,ExclusiveLock,AccessExclusiveLock}'),
  ('ExclusiveLock',
    '{RowShareLock,RowExclusiveLock,ShareUpdateExclusiveLock,ShareLock,ShareRowExclusiveLock,ExclusiveLock,AccessExclusiveLock}'),
  ('AccessExclusiveLock',
    '{AccessShareLock,RowShareLock,RowExclusiveLock,ShareUpdateExclusiveLock,ShareLock,ShareRowExclusiveLock,ExclusiveLock,AccessExclusiveLock}'))`

/**
 * pg_blocking_pids answers 0 for any prepared transaction, so whom this one blocks is found by the lock itself; who queues
 * behind those (the second who wants the same row waits for the first) by pg_blocking_pids.
 */
function readWaiters(sql: Sql, xid: string): Promise<(Waiter & { waiting: number })[]> {
  const lock = (alias: string) =>
    sql.unsafe(
      `(${['locktype', 'database', 'relation', 'page', 'tuple', 'virtualxid', 'transactionid', 'classid', 'objid', 'objsubid'].map((column) => `${alias}.${column}`).join(', ')})`,
    )
  return sql<(Waiter & { waiting: number })[]>`
    with recursive ${lockTables(sql, xid)}, ${sql.unsafe(conflicts)},
    waits as materialized (select * from locks where not granted and pid is not null),
    blocked as materialized (select pid, pg_catalog.pg_blocking_pids(pid) as blockers from waits),
    waiting (pid, direct) as (
      select w.pid, true from waits w
      join mine m on ${lock('w')} is not distinct from ${lock('m')}
      join conflicts c on c.held = m.mode and w.mode = any (c.wanted)
      union
      select b.pid, false from blocked b join waiting w on w.pid = any (b.blockers)
    ),
    waiters as (select pid, bool_or(direct) as direct from waiting group by pid)
    select w.pid, w.direct, l.locktype as type,
      coalesce(quote_ident(n.nspname) || '.' || quote_ident(c.relname), 'relation ' || l.relation) as relation,
      coalesce(a.application_name, '') as application, a.usename as user,
      extract(epoch from clock_timestamp() - a.query_start)::float8 as "querySeconds",
      extract(epoch from clock_timestamp() - l.waitstart)::float8 as "waitSeconds",
      count(*) over ()::int as waiting
    from waiters w
    join waits l on l.pid = w.pid
    left join pg_catalog.pg_stat_activity a on a.pid = w.pid
    left join pg_catalog.pg_class c on c.oid = l.relation
    left join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    order by l.waitstart nulls last limit 50`
}

/** Every prepared transaction of the whole server, whoever's it is; gids are unique in it. */
export function listServer(sql: Sql): Promise<(PreparedTransaction & { database: string })[]> {
  return sql<(PreparedTransaction & { database: string })[]>`
    select gid, transaction::text as xid, prepared as "preparedAt", coalesce(owner::text, '(dropped)') as owner,
      database::text from pg_catalog.pg_prepared_xacts order by prepared`
}
