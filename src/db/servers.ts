import type { Databases, Sql } from './databases.ts'
import { isConnectionLoss } from './sqlstate.ts'

/** What distinguishes one server (cluster) from another, and one of its lives from the next. */
export type Server = {
  systemIdentifier: string
  /** goes up by one at each promotion and each restore to a point in time; undefined on a standby */
  timeline: number | undefined
  maxPrepared: number
}

export async function readServer(sql: Sql): Promise<Server> {
  const [row] = await sql<{ id: string; timeline: number | null; slots: string }[]>`
    select (select system_identifier::text from pg_control_system()) as id,
      -- The first 8 hex digits of a WAL file's name. The control file learns of a new timeline only at a checkpoint.
      case when pg_is_in_recovery() then null
           else ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int end as timeline,
      current_setting('max_prepared_transactions') as slots`
  if (!row) throw new Error('the server said nothing about itself')
  return { systemIdentifier: row.id, timeline: row.timeline ?? undefined, maxPrepared: Number(row.slots) }
}

/** What is left to other programs and to what is in doubt. */
const share = 0.9

/**
 * How many attempts may be prepared at once over all processes of the installation: an attempt takes at most one slot
 * for each participant, and participants on one server share its slots.
 */
export type SlotBudget = {
  /** on the coordinator's server */
  coordinator: number
  /** on the scarcest other server; null where there is none */
  elsewhere: number | null
}

export async function readSlotBudget({ primary, all }: Databases): Promise<SlotBudget> {
  const servers = new Map<string, { slots: number; participants: number }>()
  for (const participant of [primary, ...all.filter((p) => p !== primary)]) {
    if (!participant.checked) continue
    const server = await readServer(participant.sql).catch((error: unknown) => {
      // Nothing is staged there meanwhile; when it is back, its own 53200 is the limit.
      if (isConnectionLoss(error)) return undefined
      throw error
    })
    if (!server) continue
    const { systemIdentifier, maxPrepared } = server
    const known = servers.get(systemIdentifier)
    servers.set(systemIdentifier, { slots: maxPrepared, participants: (known?.participants ?? 0) + 1 })
  }
  // The coordinator comes first, and is always there.
  const [coordinator = 1, ...others] = [...servers.values()].map((server) =>
    Math.max(1, Math.floor((server.slots * share) / server.participants)),
  )
  return { coordinator, elsewhere: others.length === 0 ? null : Math.min(...others) }
}
