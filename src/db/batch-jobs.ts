import type { Sql } from './databases.ts'
import type { Json } from './json.ts'

/** Table batch_jobs: the control row of each batch job. Never written inside staged work. */
export type BatchStatus = 'queued' | 'running' | 'completed' | 'failed' | 'cancelled'

export type BatchJob = {
  id: string
  batch: string
  params: Json
  status: BatchStatus
  error: string | null
  correlationId: string
  createdAt: Date
  startedAt: Date | null
  finishedAt: Date | null
}

const columns = `id, batch, params, status, error, correlation_id as "correlationId", created_at as "createdAt",
  started_at as "startedAt", finished_at as "finishedAt"`

export async function insertBatchJob(
  sql: Sql,
  job: { id: string; batch: string; params: Json; correlationId: string },
): Promise<void> {
  await sql`
    insert into holdfast.batch_jobs (id, batch, params, correlation_id)
    values (${job.id}, ${job.batch}, ${sql.json(job.params)}, ${job.correlationId})`
}

export async function findBatchJob(sql: Sql, id: string): Promise<BatchJob | undefined> {
  const [row] = await sql<BatchJob[]>`select ${sql.unsafe(columns)} from holdfast.batch_jobs where id = ${id}`
  return row
}

export async function listUnfinishedBatchJobs(sql: Sql): Promise<BatchJob[]> {
  return sql<BatchJob[]>`
    select ${sql.unsafe(columns)} from holdfast.batch_jobs where status in ('queued', 'running') order by created_at`
}

/** Compare-and-set of the status; false when the job is in none of `from`. */
export async function setBatchStatus(
  sql: Sql,
  id: string,
  from: readonly BatchStatus[],
  to: BatchStatus,
  error: string | null = null,
): Promise<boolean> {
  const { count } = await sql`
    update holdfast.batch_jobs set status = ${to}, error = ${error},
      started_at = case when ${to} = 'running' then coalesce(started_at, clock_timestamp()) else started_at end,
      finished_at = case when ${to} in ('completed', 'failed', 'cancelled') then clock_timestamp() end
    where id = ${id} and status in ${sql([...from])}`
  return count > 0
}
