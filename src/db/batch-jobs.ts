import type { Sql } from './databases.ts'
import type { Json } from './json.ts'
import type { ScheduledTime } from './schedules.ts'

/** Table batch_jobs: the control row of each batch job. Never written inside staged work. */
export type BatchStatus =
  | 'queued'
  | 'running'
  | 'pausing'
  | 'paused'
  | 'cancelling'
  | 'cancelled'
  | 'completed'
  | 'failed'

export type BatchJob = {
  id: string
  batch: string
  params: Json
  status: BatchStatus
  error: string | null
  /** why no chunk begins just now */
  hold: string | null
  /** how many rows the source had when the job first started; null before that, or where the source cannot tell */
  rowsExpected: bigint | null
  /** false: estimated from the statistics of the table */
  rowsExact: boolean | null
  correlationId: string
  /** the schedule that it was made by, and the due time that it was made for; null: somebody enqueued it */
  schedule: string | null
  scheduledFor: Date | null
  createdAt: Date
  startedAt: Date | null
  finishedAt: Date | null
}

const columns = `id, batch, params, status, error, hold, rows_expected as "rowsExpected", rows_exact as "rowsExact",
  correlation_id as "correlationId", schedule, scheduled_for as "scheduledFor", created_at as "createdAt",
  started_at as "startedAt", finished_at as "finishedAt"`

type Row = Omit<BatchJob, 'rowsExpected'> & { rowsExpected: string | null }

function toJob(row: Row): BatchJob {
  return { ...row, rowsExpected: row.rowsExpected === null ? null : BigInt(row.rowsExpected) }
}

/**
 * Records a job. With `unique` not while another one of this batch with these parameters is open, that is, neither
 * completed nor cancelled: then that one's id is returned.
 */
export async function insertBatchJob(
  sql: Sql,
  job: {
    id: string
    batch: string
    params: Json
    unique: boolean
    correlationId: string
    scheduled?: ScheduledTime
  },
): Promise<{ id: string; existed: boolean }> {
  // The text of jsonb does not depend on the order in which the keys were given.
  const key = job.unique ? sql`md5(${sql.json(job.params)}::jsonb::text)` : sql`null`
  for (;;) {
    const [inserted] = await sql`
      insert into holdfast.batch_jobs (id, batch, params, unique_key, correlation_id, schedule, scheduled_for)
      values (${job.id}, ${job.batch}, ${sql.json(job.params)}, ${key}, ${job.correlationId},
        ${job.scheduled?.schedule ?? null}, ${job.scheduled?.dueAt ?? null})
      on conflict (batch, unique_key) where unique_key is not null and status not in ('completed', 'cancelled')
      do nothing returning id`
    if (inserted) return { id: job.id, existed: false }
    const [open] = await sql<{ id: string }[]>`
      select id from holdfast.batch_jobs
      where batch = ${job.batch} and unique_key = ${key} and status not in ('completed', 'cancelled')`
    // It may have ended between the two statements.
    if (open) return { id: open.id, existed: true }
  }
}

export async function findBatchJob(sql: Sql, id: string): Promise<BatchJob | undefined> {
  const [row] = await sql<Row[]>`select ${sql.unsafe(columns)} from holdfast.batch_jobs where id = ${id}`
  return row && toJob(row)
}

export type BatchFilter = { batch?: string; status?: BatchStatus; limit?: number }

/** The newest first. */
export async function listBatchJobs(sql: Sql, filter: BatchFilter = {}): Promise<BatchJob[]> {
  const { batch = null, status = null, limit = 100 } = filter
  const rows = await sql<Row[]>`
    select ${sql.unsafe(columns)} from holdfast.batch_jobs
    where (${batch}::text is null or batch = ${batch}) and (${status}::text is null or status = ${status})
    order by created_at desc, id desc limit ${limit}`
  return rows.map(toJob)
}

/** The newest job of a batch with these parameters that has completed, or else the newest one. */
export async function findByParams(sql: Sql, batch: string, params: Json): Promise<BatchJob | undefined> {
  const [row] = await sql<Row[]>`
    select ${sql.unsafe(columns)} from holdfast.batch_jobs
    where batch = ${batch} and params = ${sql.json(params)}::jsonb
    order by (status = 'completed') desc, created_at desc limit 1`
  return row && toJob(row)
}

/** What a worker has to take up: to run it, or to acknowledge that it pauses or is cancelled. */
export async function listUnfinishedBatchJobs(sql: Sql): Promise<BatchJob[]> {
  const rows = await sql<Row[]>`
    select ${sql.unsafe(columns)} from holdfast.batch_jobs
    where status in ('queued', 'running', 'pausing', 'cancelling') order by created_at`
  return rows.map(toJob)
}

/** Of the status alone: cheap enough for each chunk, whose flush it shares. */
export async function readBatchStatus(sql: Sql, id: string): Promise<BatchStatus | undefined> {
  const [row] = await sql<{ status: BatchStatus }[]>`select status from holdfast.batch_jobs where id = ${id}`
  return row?.status
}

/** Compare-and-set of the status; undefined when the job is in none of the states that `moves` names. */
export async function moveBatchJob(
  sql: Sql,
  id: string,
  moves: Partial<Record<BatchStatus, BatchStatus>>,
  error: string | null = null,
): Promise<BatchStatus | undefined> {
  const from = Object.keys(moves)
  const to = Object.values(moves)
  const [row] = await sql<{ status: BatchStatus }[]>`
    update holdfast.batch_jobs j set status = m.target, error = ${error}, hold = null,
      started_at = case when m.target = 'running' then coalesce(started_at, clock_timestamp()) else started_at end,
      finished_at = case when m.target in ('completed', 'failed', 'cancelled') then clock_timestamp() end
    from unnest(${from}::text[], ${to}::text[]) m (source, target)
    where j.id = ${id} and j.status = m.source returning j.status`
  return row?.status
}

export async function recordHold(sql: Sql, id: string, hold: string | null): Promise<void> {
  await sql`update holdfast.batch_jobs set hold = ${hold} where id = ${id}`
}

export async function recordExpected(
  sql: Sql,
  id: string,
  expected: { rows: bigint; exact: boolean },
): Promise<void> {
  await sql`
    update holdfast.batch_jobs set rows_expected = ${String(expected.rows)}::bigint, rows_exact = ${expected.exact}
    where id = ${id} and rows_expected is null`
}
