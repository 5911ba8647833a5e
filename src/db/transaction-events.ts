import type { Sql } from './databases.ts'
import type { Json } from './json.ts'
import { attemptFromUuid } from './transaction-name.ts'
import type { Tx } from './tx.ts'

/** Table transaction_events, and the view transaction_audit: what is in it, and the markers of commit-forward work. */
export type TransactionEvent = {
  event: string
  name: string
  attempt: string
  /** who: a process, or a login and the name that was given with a decision by hand */
  actor: string
  correlationId?: string
  detail?: Record<string, Json>
}

export async function recordEvent(sql: Sql | Tx, e: TransactionEvent): Promise<void> {
  await sql`
    insert into holdfast.transaction_events (event, name, attempt, actor, correlation_id, detail)
    values (${e.event}, ${e.name}, ${e.attempt}, ${e.actor}, ${e.correlationId ?? null}, ${e.detail === undefined ? null : sql.json(e.detail)})`
}

export type RecordedEvent = {
  at: Date
  event: string
  attempt: string
  actor: string
  correlationId: string | null
  detail: Json
}

export async function lastEvent(sql: Sql, name: string): Promise<string | undefined> {
  const [row] = await sql<{ event: string }[]>`
    select event from holdfast.transaction_audit where name = ${name} order by id desc limit 1`
  return row?.event
}

/** What happened under a name, oldest first. */
export async function listEvents(sql: Sql, name: string, limit = 200): Promise<RecordedEvent[]> {
  const rows = await sql<RecordedEvent[]>`
    select at, event, attempt, actor, correlation_id as "correlationId", detail
    from holdfast.transaction_audit where name = ${name} order by id limit ${limit}`
  return rows.map((row) => ({ ...row, attempt: attemptFromUuid(row.attempt) }))
}
