import assert from 'node:assert/strict'
import { findJob } from '../../src/db/jobs.ts'
import type { JobContext } from '../../src/jobs/context.ts'
import type { JobDefinition } from '../../src/jobs/job-definition.ts'
import { runJob } from '../../src/jobs/run-job.ts'
import { RunningJobs } from '../../src/jobs/running-jobs.ts'

/** Runs a job to its end, as a worker that looks again and again does; the pauses in between are over at once. */
export async function runJobToItsEnd(
  ctx: JobContext,
  definition: JobDefinition,
  jobId: string,
): Promise<void> {
  const { sql } = ctx.databases.primary
  const runner = { ctx, definitions: new Map([[definition.name, definition]]), running: new RunningJobs() }
  for (let round = 0; round < 20; round++) {
    await runJob(runner, { id: jobId, name: definition.name }, new AbortController().signal)
    const job = await findJob(sql, jobId)
    if (job && ['completed', 'failed', 'cancelled'].includes(job.status)) return
    await sql`update holdfast.jobs set run_at = clock_timestamp() where status = 'queued'`
    await endPauses(ctx)
  }
  assert.fail(`job ${jobId} comes to no end`)
}

/** Compensations that failed are due again now. */
export async function endPauses({ databases }: JobContext): Promise<void> {
  await databases.primary.sql`
    update holdfast.distributed_transactions set compensate_after = clock_timestamp()
    where compensation = 'due' and compensate_after > clock_timestamp()`
}
