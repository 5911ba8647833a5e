import { hostname } from 'node:os'
import type { Sql } from './databases.ts'
import type { SlotBudget } from './servers.ts'

/** Table workers: the lease of each process that stages work, by the coordinator's clock. */
export type WorkerKind = 'worker' | 'producer'

export type Lease = {
  id: string
  kind: WorkerKind
  leaseMs: number
  /** how many attempts this process would like to have prepared at once */
  wants: number
  /** how many all processes together may have */
  budget: SlotBudget
}

/** Creates or renews the lease of a process; returns how many attempts it may have prepared at once until the next time. */
export async function renewLease(sql: Sql, lease: Lease): Promise<number> {
  const [row] = await sql<{ granted: number }[]>`
    select holdfast.renew_lease(${lease.id}, ${lease.kind}, ${hostname()}, ${process.pid},
      make_interval(secs => ${lease.leaseMs / 1000}), ${lease.wants}, ${lease.budget.coordinator},
      ${lease.budget.elsewhere}) as granted`
  return row?.granted ?? 0
}

export async function endLease(sql: Sql, id: string): Promise<void> {
  await sql`delete from holdfast.workers where id = ${id}`
}

/** Which of these processes hold a lease now. */
export async function liveOwners(sql: Sql, ids: readonly string[]): Promise<Set<string>> {
  if (ids.length === 0) return new Set()
  const rows = await sql<{ id: string }[]>`
    select id from holdfast.workers where id in ${sql([...new Set(ids)])} and lease_until > clock_timestamp()`
  return new Set(rows.map((row) => row.id))
}

/** Removes leases that ended long ago; returns how many. */
export async function removeDeadLeases(sql: Sql): Promise<number> {
  const { count } =
    await sql`delete from holdfast.workers where lease_until < clock_timestamp() - interval '1 day'`
  return count
}
