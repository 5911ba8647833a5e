import type { Sql } from './databases.ts'
import type { Json } from './json.ts'
import type { Tx } from './tx.ts'

/** Table job_runs: what a scheduled job did. The newest row is its last success, whatever the queues forget. */
export async function appendJobRun(tx: Tx, job: string, result: Json): Promise<void> {
  await tx`insert into holdfast.job_runs (job, result) values (${job}, ${tx.json(result)})`
}

/** How long ago a job last succeeded, by the coordinator's clock; where it never did, how old the installation is. */
export async function sinceLastRun(sql: Sql, job: string): Promise<{ ms: number; never: boolean }> {
  const [row] = await sql<{ ms: number; never: boolean }[]>`
    select extract(epoch from clock_timestamp() - coalesce(last, recorded_at))::float8 * 1000 as ms, last is null as never
    from holdfast.installation, (select max(at) as last from holdfast.job_runs where job = ${job}) runs
    where coordinator`
  return row ?? { ms: 0, never: true }
}
