import { readOpenJobs } from '../db/jobs.ts'
import type { JobContext } from './context.ts'

/** Looks at the open jobs once: sets their gauges, and raises an alert where one is due for longer than `alerts.stuckAfterMs`. */
export async function watchJobs(ctx: Pick<JobContext, 'databases' | 'telemetry' | 'alerts'>): Promise<void> {
  const open = await readOpenJobs(ctx.databases.primary.sql)
  ctx.telemetry.jobs.observe(open)
  for (const { name, queued, oldestDueSeconds } of open) {
    if (oldestDueSeconds * 1_000 <= ctx.alerts.settings.stuckAfterMs) continue
    ctx.alerts.raise({
      kind: 'jobs_lag',
      subject: name,
      message: `${queued} jobs of ${name} are queued, one is due for ${Math.floor(oldestDueSeconds)} seconds: is there a worker with this job in its config and on its queue, and do the queue's limits leave room?`,
    })
  }
}

/** To be looked at: it is not run again by itself. Its error stays where rights to the table are needed to read it. */
export function alertFailed({ alerts }: Pick<JobContext, 'alerts'>, name: string, jobId: string): void {
  alerts.raise({
    kind: 'job_failed',
    subject: name,
    message: `a job of ${name} has failed for good: \`holdfast job show ${jobId}\` says why, \`holdfast job retry ${jobId}\` runs it again; \`holdfast job list --status failed\` lists others`,
  })
}
