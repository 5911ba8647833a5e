import { hostname } from 'node:os'
import type { Sql } from './databases.ts'

/** Table batch_runs: each time that a worker had a job. */
export type BatchRunRecord = {
  id: bigint
  jobId: string
  /** host and process id */
  worker: string
  startedAt: Date
  /** null: it runs, or its worker died */
  endedAt: Date | null
  outcome: 'completed' | 'failed' | 'stopped' | null
  chunks: bigint | null
  rows: bigint | null
}

export async function beginBatchRun(sql: Sql, jobId: string): Promise<string> {
  const [row] = await sql<{ id: string }[]>`
    insert into holdfast.batch_runs (job_id, worker) values (${jobId}, ${`${hostname()}:${process.pid}`}) returning id`
  if (!row) throw new Error('an insert without its row')
  return row.id
}

export async function endBatchRun(
  sql: Sql,
  id: string,
  end: { outcome: 'completed' | 'failed' | 'stopped'; chunks: bigint; rows: bigint },
): Promise<void> {
  await sql`
    update holdfast.batch_runs set ended_at = clock_timestamp(), outcome = ${end.outcome},
      chunks = ${String(end.chunks)}::bigint, rows = ${String(end.rows)}::bigint
    where id = ${id}::bigint`
}

/** The newest first. */
export async function listBatchRuns(sql: Sql, jobId: string, limit = 100): Promise<BatchRunRecord[]> {
  const rows = await sql<
    (Omit<BatchRunRecord, 'id' | 'chunks' | 'rows'> & {
      id: string
      chunks: string | null
      rows: string | null
    })[]
  >`
    select id, job_id as "jobId", worker, started_at as "startedAt", ended_at as "endedAt", outcome, chunks, rows
    from holdfast.batch_runs where job_id = ${jobId} order by id desc limit ${limit}`
  return rows.map((row) => ({
    ...row,
    id: BigInt(row.id),
    chunks: row.chunks === null ? null : BigInt(row.chunks),
    rows: row.rows === null ? null : BigInt(row.rows),
  }))
}
