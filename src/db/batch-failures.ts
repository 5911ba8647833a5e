import { createHash } from 'node:crypto'
import type { Sql } from './databases.ts'
import { FencedError } from './errors.ts'
import type { Json } from './json.ts'
import { messageOf } from './message-of.ts'
import { sqlstateOf } from './sqlstate.ts'
import type { Tx } from './tx.ts'

/** Table batch_failures: the rows that batches could not process. */
export type BatchFailure = {
  id: bigint
  jobId: string
  rowKey: Json
  error: string
  sqlstate: string | null
  /** failures with one cause share it */
  stackDigest: string
  state: 'failed' | 'retry' | 'resolved' | 'gone'
  tries: number
  at: Date
}

export type FailedRow = {
  jobId: string
  range: number
  n: bigint
  rowKey: Json
  cursor: Json
  error: unknown
}

/** In the transaction that passes the row over. */
export function recordBatchFailure(tx: Tx, row: FailedRow): PromiseLike<unknown> {
  return tx`
    insert into holdfast.batch_failures (job_id, range, n, row_key, cursor, error, sqlstate, stack_digest)
    values (${row.jobId}, ${row.range}, ${String(row.n)}::bigint, ${JSON.stringify(row.rowKey)}::text::jsonb,
            ${JSON.stringify(row.cursor)}::text::jsonb, ${messageOf(row.error).slice(0, 2_000)},
            ${sqlstateOf(row.error) ?? null}, ${stackDigest(row.error)})`
}

/** Of the frames without the message, which often holds the row's own values. */
function stackDigest(error: unknown): string {
  const frames =
    error instanceof Error ? (error.stack ?? '').split('\n').filter((l) => /^\s+at /.test(l)) : []
  return createHash('sha256').update(frames.join('\n')).digest('hex').slice(0, 16)
}

export async function countFailures(sql: Sql, jobId: string): Promise<number> {
  const [row] = await sql<{ count: number }[]>`
    select count(*)::int as count from holdfast.batch_failures where job_id = ${jobId} and state in ('failed', 'retry')`
  return row?.count ?? 0
}

/** The oldest first. */
export async function listFailures(sql: Sql, jobId: string, limit = 100): Promise<BatchFailure[]> {
  const rows = await sql<(Omit<BatchFailure, 'id'> & { id: string })[]>`
    select id, job_id as "jobId", row_key as "rowKey", error, sqlstate, stack_digest as "stackDigest", state, tries, at
    from holdfast.batch_failures where job_id = ${jobId} order by id limit ${limit}`
  return rows.map((row) => ({ ...row, id: BigInt(row.id) }))
}

/** Asks for another try of all rows of a job that failed; returns how many. */
export async function retryFailures(tx: Tx, jobId: string): Promise<number> {
  const { count } = await tx`
    update holdfast.batch_failures set state = 'retry' where job_id = ${jobId} and state = 'failed'`
  return count
}

export type RowToRetry = { id: string; range: number; rowKey: Json; cursor: Json; tries: number }

export async function nextToRetry(sql: Sql, jobId: string): Promise<RowToRetry | undefined> {
  const [row] = await sql<RowToRetry[]>`
    select id, range, row_key as "rowKey", cursor, tries from holdfast.batch_failures
    where job_id = ${jobId} and state = 'retry' order by id limit 1`
  return row
}

/** In the transaction that processed the row, or found it gone; throws FencedError when somebody else was faster. */
export async function settleFailure(tx: Tx, id: string, state: 'resolved' | 'gone'): Promise<void> {
  const { count } = await tx`
    update holdfast.batch_failures set state = ${state}, resolved_at = clock_timestamp()
    where id = ${id}::bigint and state = 'retry'`
  if (count === 0) throw new FencedError('this failure was settled by another run')
}

/** The try failed as well: it waits for another word. */
export async function failAgain(sql: Sql, id: string, error: unknown): Promise<void> {
  await sql`
    update holdfast.batch_failures set state = 'failed', tries = tries + 1, error = ${messageOf(error).slice(0, 2_000)},
      sqlstate = ${sqlstateOf(error) ?? null}, stack_digest = ${stackDigest(error)}
    where id = ${id}::bigint and state = 'retry'`
}
