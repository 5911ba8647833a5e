import type { Sql } from './databases.ts'
import type { Json } from './json.ts'
import { attemptFromUuid } from './transaction-name.ts'

/** Table distributed_transactions, read: one row for each attempt; the row holds the decision. */
export type Status =
  | 'started'
  | 'pending'
  | 'committing'
  | 'committed'
  | 'rolling_back'
  | 'rolled_back'
  | 'cleaned_up'

type Compensation = 'none' | 'due' | 'done' | 'failed'

export type DistributedTransaction = {
  attempt: string
  name: string
  operation: string | null
  participants: string[]
  status: Status
  decision: 'commit' | 'abort' | null
  reason: string | null
  abortCause: string | null
  /** why an operator has to look: shown as `requires_manual_intervention` */
  quarantine: string | null
  owner: string | null
  resumable: boolean
  awaits: string[]
  compensation: Compensation
  deadline: Date
  correlationId: string
  traceparent: string | null
  metadata: Json
  /** what the work returned */
  staged: Json
  /** what the effects returned */
  result: Json
  createdAt: Date
  updatedAt: Date
}

const columns = `attempt, name, operation, participants, status, decision, reason, abort_cause as "abortCause",
  quarantine, owner, resumable, awaits, compensation, deadline, correlation_id as "correlationId", traceparent, metadata,
  staged, result, created_at as "createdAt", updated_at as "updatedAt"`

const terminal = `('committed', 'rolled_back', 'cleaned_up')`

/** The attempt of a name that counts: the one that is not rolled back, of which there is at most one, or the last. */
export async function findByName(sql: Sql, name: string): Promise<DistributedTransaction | undefined> {
  const rows = await sql<DistributedTransaction[]>`
    select ${sql.unsafe(columns)} from holdfast.distributed_transactions
    where name = ${name} order by status in ('rolled_back', 'cleaned_up'), created_at desc limit 1`
  return rows.map(fromRow)[0]
}

/** All attempts of a name that are still recorded, the oldest first. */
export async function listAttemptsOf(sql: Sql, name: string): Promise<DistributedTransaction[]> {
  const rows = await sql<DistributedTransaction[]>`
    select ${sql.unsafe(columns)} from holdfast.distributed_transactions where name = ${name} order by created_at`
  return rows.map(fromRow)
}

export async function findByAttempt(sql: Sql, attempt: string): Promise<DistributedTransaction | undefined> {
  const rows = await sql<DistributedTransaction[]>`
    select ${sql.unsafe(columns)} from holdfast.distributed_transactions where attempt = ${attempt}`
  return rows.map(fromRow)[0]
}

export type ListFilter = { status?: Status; limit?: number }

/** What is not at its end, or is quarantined, or has a compensation due, oldest first; or all of one status, newest first. */
export async function listTransactions(
  sql: Sql,
  { status, limit = 100 }: ListFilter = {},
): Promise<DistributedTransaction[]> {
  const rows =
    status === undefined
      ? await sql<DistributedTransaction[]>`
          select ${sql.unsafe(columns)} from holdfast.distributed_transactions
          where status not in ${sql.unsafe(terminal)} or quarantine is not null or compensation in ('due', 'failed')
          order by created_at limit ${limit}`
      : await sql<DistributedTransaction[]>`
          select ${sql.unsafe(columns)} from holdfast.distributed_transactions
          where status = ${status} order by updated_at desc limit ${limit}`
  return rows.map(fromRow)
}

/** An unfinished attempt and what recovery judges it by; all times by the coordinator's clock. */
export type Unfinished = DistributedTransaction & {
  ownerAlive: boolean
  pastDeadline: boolean
  /** changes with every write of the row (its xmin) */
  version: string
}

/** `quarantined` as well: those that were decided may be finishable now. */
export async function listUnfinished(sql: Sql, { quarantined = false } = {}): Promise<Unfinished[]> {
  const rows = await sql<Unfinished[]>`
    select ${sql.unsafe(columns)}, t.xmin::text as version,
      coalesce((select w.lease_until > clock_timestamp() from holdfast.workers w where w.id = t.owner), false) as "ownerAlive",
      t.deadline < clock_timestamp() as "pastDeadline"
    from holdfast.distributed_transactions t
    where status not in ${sql.unsafe(terminal)}
      and (quarantine is null or (${quarantined} and decision is not null))
    order by created_at limit 10000`
  return rows.map(fromRow)
}

/** The attempts whose markers somebody may still ask for, however old they are. */
export async function listUnsettledAttempts(sql: Sql): Promise<string[]> {
  const rows = await sql<{ attempt: string }[]>`
    select attempt from holdfast.distributed_transactions
    where status not in ${sql.unsafe(terminal)} or quarantine is not null or compensation in ('due', 'failed')`
  return rows.map((row) => row.attempt)
}

/** How many transactions stand at each status that is not an end. */
export async function countOpen(sql: Sql): Promise<Map<Status, number>> {
  const rows = await sql<{ status: Status; count: number }[]>`
    select status, count(*)::int from holdfast.distributed_transactions
    where status not in ${sql.unsafe(terminal)} group by status`
  return new Map(rows.map((row) => [row.status, row.count]))
}

/** Whether a process holds the attempt now: its lease lives. */
export async function ownerLives(sql: Sql, attempt: string): Promise<boolean> {
  const [row] = await sql<{ alive: boolean }[]>`
    select exists (select from holdfast.workers w where w.id = t.owner and w.lease_until > clock_timestamp()) as alive
    from holdfast.distributed_transactions t where attempt = ${attempt}`
  return row?.alive ?? false
}

function fromRow<R extends DistributedTransaction>(row: R): R {
  return { ...row, attempt: attemptFromUuid(row.attempt) }
}
