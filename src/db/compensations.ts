import type { Participant, Sql } from './databases.ts'
import type { DistributedTransaction } from './distributed-transactions.ts'
import { findByAttempt } from './distributed-transactions.ts'
import { messageOf } from './message-of.ts'
import { attemptFromUuid } from './transaction-name.ts'

/**
 * The compensation of an attempt, in its row. Due only counts once the rollback is proved and the run that may still be
 * in its effects has ended or lost its lease.
 */
const ready = `compensation = 'due' and status in ('rolled_back', 'cleaned_up') and compensate_after <= clock_timestamp()
  and quarantine is null and (owner is null or not exists (
    select from holdfast.workers w where w.id = t.owner and w.lease_until > clock_timestamp()))`

export type DueCompensation = { attempt: string; name: string; operation: string }

export async function listDueCompensations(sql: Sql, limit = 1_000): Promise<DueCompensation[]> {
  const rows = await sql<DueCompensation[]>`
    select attempt, name, operation from holdfast.distributed_transactions t
    where ${sql.unsafe(ready)} and operation is not null order by compensate_after limit ${limit}`
  return rows.map((row) => ({ ...row, attempt: attemptFromUuid(row.attempt) }))
}

/** What of a name's attempts is still to be compensated, or never will be. */
export async function listUnsettledCompensations(
  sql: Sql,
  name: string,
): Promise<{ attempt: string; operation: string | null; compensation: 'due' | 'failed' }[]> {
  const rows = await sql<{ attempt: string; operation: string | null; compensation: 'due' | 'failed' }[]>`
    select attempt, operation, compensation from holdfast.distributed_transactions
    where name = ${name} and compensation in ('due', 'failed') order by created_at`
  return rows.map((row) => ({ ...row, attempt: attemptFromUuid(row.attempt) }))
}

/** Makes `owner` the one who compensates, for as long as its lease lives. Undefined: it is not ready, or another does. */
export async function claimCompensation(
  sql: Sql,
  attempt: string,
  owner: string,
): Promise<Claimed | undefined> {
  const [claimed] = await sql<{ failures: number; version: string }[]>`
    update holdfast.distributed_transactions t set owner = ${owner}, updated_at = clock_timestamp()
    where attempt = ${attempt} and ${sql.unsafe(ready)}
    returning compensation_failures as failures, xmin::text as version`
  const row = claimed && (await findByAttempt(sql, attempt))
  return row && { ...row, ...claimed }
}

export type Claimed = DistributedTransaction & {
  failures: number
  /** of the row as it was claimed: a run that ends meanwhile makes another one, and compensation due again */
  version: string
}

/** False: it is due once more, since a run came back from its effects meanwhile. */
export async function completeCompensation(
  primary: Participant,
  { attempt, version }: Claimed,
  owner: string,
): Promise<boolean> {
  const [row] = await primary.sql<{ done: boolean }[]>`
    update holdfast.distributed_transactions t set
      compensation = case when old.version = ${version} then 'done' else t.compensation end,
      owner = null, updated_at = clock_timestamp(), compensation_error = null
    from (select xmin::text as version from holdfast.distributed_transactions where attempt = ${attempt} for no key update) old
    where t.attempt = ${attempt} and t.owner = ${owner} and t.compensation = 'due'
    returning t.compensation = 'done' as done`
  return row?.done ?? false
}

/** Records a failure: to be tried again after `waitMs`, or given up. */
export async function failCompensation(
  primary: Participant,
  attempt: string,
  owner: string,
  error: unknown,
  next: { waitMs: number } | 'give-up',
): Promise<void> {
  const waitMs = next === 'give-up' ? 0 : next.waitMs
  await primary.sql`
    update holdfast.distributed_transactions set owner = null, updated_at = clock_timestamp(),
      compensation = ${next === 'give-up' ? 'failed' : 'due'}, compensation_error = ${messageOf(error)},
      compensation_failures = compensation_failures + 1,
      compensate_after = clock_timestamp() + make_interval(secs => ${waitMs / 1000})
    where attempt = ${attempt} and owner = ${owner} and compensation = 'due'`
}
