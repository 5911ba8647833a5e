import type { Sql } from './databases.ts'
import type { Json } from './json.ts'
import type { Tx } from './tx.ts'

/** Table job_runs: what a scheduled job did. The newest row is its last success, whatever the queues forget. */
export async function appendJobRun(tx: Tx, job: string, result: Json): Promise<void> {
  await tx`insert into holdfast.job_runs (job, result) values (${job}, ${tx.json(result)})`
}

/** How long ago a job last succeeded, by the coordinator's clock; undefined: never. */
export async function sinceLastRun(sql: Sql, job: string): Promise<number | undefined> {
  const [row] = await sql<{ ms: number | null }[]>`
    select extract(epoch from clock_timestamp() - max(at))::float8 * 1000 as ms from holdfast.job_runs where job = ${job}`
  return row?.ms ?? undefined
}
