import type { Participant } from './databases.ts'
import { type DistributedTransaction, findByName, type Status } from './distributed-transactions.ts'
import { NameInUseError, NoSlotsError } from './errors.ts'
import type { Json } from './json.ts'
import { SQLSTATE, sqlstateOf } from './sqlstate.ts'
import { recordEvent } from './transaction-events.ts'
import type { Sql, Tx } from './tx.ts'

/** Table distributed_transactions, written: every step of an attempt is a compare-and-set together with its audit row. */
export type NewAttempt = {
  attempt: string
  name: string
  operation: string | null
  participants: string[]
  owner: string
  resumable: boolean
  deadlineMs: number
  correlationId: string
  traceparent: string | null
  metadata: Json
  finishers: readonly string[] | null
  compensates: boolean
  /** the services that vote, with the hash of each one's token */
  awaits: readonly { service: string; tokenHash: Buffer }[]
  /** how many transactions may wait for a hand or for votes; at it this one is refused. Undefined: it will not wait */
  waitingLimit: number | undefined
}

/**
 * Records an attempt before anything of it is prepared. Throws NameInUseError while an earlier attempt of the name is
 * under way or committed, NoSlotsError where too many wait already. Where the coordinator database is the only
 * participant the row may become durable together with the PREPARE, which flushes everything before it.
 */
export async function insertStarted(primary: Participant, a: NewAttempt): Promise<void> {
  try {
    if (a.waitingLimit === undefined && a.awaits.length === 0) {
      await primary.statement((sql) => insertRow(sql, a))
      return
    }
    await primary.transaction(async (tx) => {
      if (a.waitingLimit !== undefined) await checkWaiting(tx, a.waitingLimit)
      await insertRow(tx, a)
      for (const { service, tokenHash } of a.awaits) {
        await tx`
          insert into holdfast.transaction_votes (attempt, service, token_hash)
          values (${a.attempt}, ${service}, ${tokenHash})`
      }
    })
  } catch (error) {
    if (sqlstateOf(error) !== SQLSTATE.uniqueViolation) throw error
    const previous = await findByName(primary.sql, a.name)
    throw new NameInUseError(
      `${a.name} is in use: its last attempt is ${previous?.status ?? 'just ending'}. ${adviceFor(previous?.status)}`,
      { cause: error },
    )
  }
}

/** The row and its audit row, in one statement. */
function insertRow(sql: Sql, a: NewAttempt): PromiseLike<unknown> {
  const alone = a.participants.length === 1 && a.participants[0] === 'primary'
  return sql`
    with started as (
      insert into holdfast.distributed_transactions
        (attempt, name, operation, participants, owner, resumable, deadline, correlation_id, traceparent, metadata,
         finishers, compensates, awaits)
      values (${a.attempt}, ${a.name}, ${a.operation}, ${a.participants}, ${a.owner}, ${a.resumable},
              clock_timestamp() + make_interval(secs => ${a.deadlineMs / 1000}), ${a.correlationId},
              ${a.traceparent}, ${a.metadata === null ? null : sql.json(a.metadata)},
              ${a.finishers === null ? null : [...a.finishers]}, ${a.compensates}, ${a.awaits.map(({ service }) => service)})
      returning attempt, name, owner, correlation_id)
    insert into holdfast.transaction_events (event, name, attempt, actor, correlation_id)
    select 'started', name, attempt, owner, correlation_id from started
    where set_config('synchronous_commit', ${alone ? 'off' : 'on'}, true) is not null`
}

/** A transaction that waits keeps its slots; those that do not wait must still find some. */
async function checkWaiting(tx: Tx, limit: number): Promise<void> {
  const [row] = await tx<{ waiting: number }[]>`
    select count(*)::int as waiting from holdfast.distributed_transactions
    where status = 'pending' and owner is null`
  if ((row?.waiting ?? 0) >= limit) {
    throw new NoSlotsError(
      `${row?.waiting} transactions wait to be committed or for votes already, half of what the servers have room for; finish some (\`holdfast tx list\` shows them), or raise max_prepared_transactions`,
    )
  }
}

function adviceFor(status: Status | undefined): string {
  if (status === 'committed') return 'A committed name stays taken; use a new name for new work'
  if (status === 'pending') return 'Commit it, roll it back, or use another name'
  return 'Wait until it has ended, or use another name'
}

/** The columns that a transition may write along with the status. */
export type TransitionFields = {
  decision?: 'commit' | 'abort'
  reason?: string
  abortCause?: string
  staged?: Json
  result?: Json
  owner?: string | null
  /** more for the audit row */
  detail?: Record<string, Json>
}

export type Step = {
  attempt: string
  from: readonly Status[]
  to: Status
  actor: string
  /** only if the row is still the very version that was read */
  version?: string | undefined
  /** only if it belongs to this process, or to nobody: whoever took it over goes on */
  owner?: string | undefined
  /** false: a crash of the server may undo the step, since what it says follows from what is durable */
  durable: boolean
}

/**
 * Compare-and-set of the status, with its audit row, in one statement. No row when the attempt is in none of `from`: then
 * somebody else moved it and the row has to be read again. Aborting what was once pending makes its compensation due.
 */
export function transition(
  sql: Sql,
  { attempt, from, to, actor, version, owner, durable }: Step,
  fields: TransitionFields = {},
): PromiseLike<Moved[]> {
  const json = (value: Json | undefined) => (value === undefined ? null : sql.json(value))
  const detail = { ...(fields.reason === undefined ? {} : { reason: fields.reason }), ...fields.detail }
  return sql<Moved[]>`
    with moved as (
      update holdfast.distributed_transactions t set
        status = ${to}, updated_at = clock_timestamp(),
        decision = coalesce(${fields.decision ?? null}, t.decision),
        reason = coalesce(${fields.reason ?? null}, t.reason),
        abort_cause = coalesce(${fields.abortCause ?? null}, t.abort_cause),
        staged = coalesce(${json(fields.staged)}, t.staged),
        result = coalesce(${json(fields.result)}, t.result),
        owner = ${fields.owner === undefined ? sql`t.owner` : fields.owner},
        compensation = case when ${to} = 'rolling_back' and old.status = 'pending' and t.compensates
                            then 'due' else t.compensation end,
        compensate_after = case when ${to} = 'rolling_back' then clock_timestamp() else t.compensate_after end
      from (select status, owner, xmin::text as version from holdfast.distributed_transactions
            where attempt = ${attempt} for no key update) old
      where t.attempt = ${attempt} and old.status in ${sql([...from])}
        and (${version ?? null}::text is null or old.version = ${version ?? null})
        and (${owner ?? null}::text is null or old.owner is null or old.owner = ${owner ?? null})
      returning t.name, t.operation, t.participants, t.correlation_id as "correlationId", t.traceparent, old.status as "from",
        extract(epoch from clock_timestamp() - t.created_at)::float8 as "ageSeconds"),
    logged as (
      insert into holdfast.transaction_events (event, name, attempt, actor, correlation_id, detail)
      select ${to}, name, ${attempt}::uuid, ${actor}, "correlationId",
        ${Object.keys(detail).length === 0 ? null : sql.json(detail)}::jsonb
      from moved)
    select * from moved where set_config('synchronous_commit', ${durable ? 'on' : 'off'}, true) is not null`
}

export type Moved = Pick<
  DistributedTransaction,
  'name' | 'operation' | 'participants' | 'correlationId' | 'traceparent'
> & {
  from: Status
  ageSeconds: number
}

/** Takes over an attempt whose run is gone, and extends its deadline. False: it was not as it was any more. */
export async function takeOver(
  primary: Participant,
  row: Pick<DistributedTransaction, 'attempt' | 'name' | 'status' | 'owner'>,
  owner: string,
  deadlineMs: number,
): Promise<boolean> {
  return primary.transaction(async (tx) => {
    const taken = await tx`
      update holdfast.distributed_transactions t set
        owner = ${owner}, updated_at = clock_timestamp(),
        deadline = greatest(deadline, clock_timestamp() + make_interval(secs => ${deadlineMs / 1000}))
      where attempt = ${row.attempt} and status = ${row.status} and owner is not distinct from ${row.owner}
        and (owner = ${owner} or not exists (
          select from holdfast.workers w where w.id = t.owner and w.lease_until > clock_timestamp()))
      returning 1`
    if (taken.length === 0) return false
    await recordEvent(tx, { event: 'taken_over', name: row.name, attempt: row.attempt, actor: owner })
    return true
  })
}

/**
 * Ends a run: it is at the attempt no more. When its effects came back to an attempt that was aborted meanwhile, what they
 * did has to be compensated once more: also while somebody compensates just now, whose row is then another version.
 */
export async function endRun(
  primary: Participant,
  attempt: string,
  owner: string,
  effectsRan: boolean,
): Promise<void> {
  await primary.sql`
    update holdfast.distributed_transactions set
      owner = case when owner = ${owner} then null else owner end,
      compensation = case when ${effectsRan} and decision = 'abort' and compensates then 'due' else compensation end
    where attempt = ${attempt} and (owner = ${owner} or (${effectsRan} and decision = 'abort'))`
}

/** Marks an attempt for an operator, once. The status and the decision stay, so the quarantine forgets nothing. */
export async function quarantine(
  primary: Participant,
  attempt: string,
  actor: string,
  why: string,
  evidence: Record<string, Json> = {},
  /** only if the row is still the very version that was judged */
  version?: string,
): Promise<{ name: string } | undefined> {
  return primary.transaction(async (tx) => {
    const [row] = await tx<{ name: string; correlationId: string }[]>`
      update holdfast.distributed_transactions set quarantine = ${why}, updated_at = clock_timestamp()
      where attempt = ${attempt} and quarantine is null
        and (${version ?? null}::text is null or xmin::text = ${version ?? null})
      returning name, correlation_id as "correlationId"`
    if (!row) return undefined
    await recordEvent(tx, {
      event: 'requires_manual_intervention',
      name: row.name,
      attempt,
      actor,
      correlationId: row.correlationId,
      detail: { why, ...evidence },
    })
    return row
  })
}

/** Lifts a quarantine whose transaction was finished after all. */
export async function liftQuarantine(primary: Participant, attempt: string): Promise<void> {
  await primary.sql`
    update holdfast.distributed_transactions set quarantine = null
    where attempt = ${attempt} and quarantine is not null and status in ('committed', 'rolled_back', 'cleaned_up')`
}
