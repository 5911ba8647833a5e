import { describe, expect, it, vi } from 'vitest'
import { watchJobs } from '../../src/jobs/job-alerts.ts'
import { defineJob } from '../../src/jobs/job-definition.ts'
import { RetryLater } from '../../src/jobs/retry.ts'
import { type JobProcess, newJobProcesses } from '../support/jobs.ts'

const quick = { attempts: 2, backoffMs: 1, maxBackoffMs: 2 }

/** Does what its input says. */
const obedient = defineJob({
  name: 'obedient',
  retry: quick,
  stage: ({ input }) => {
    if (input === 'fail') throw new Error('as it was told to')
    if (input === 'later') throw new RetryLater(60_000)
    return null
  },
})
const other = defineJob({ name: 'other', stage: () => null })

async function samples({ ctx }: JobProcess, metric: string): Promise<Record<string, number>> {
  const text = await ctx.telemetry.registry.metrics()
  const lines = text.split('\n').filter((line) => line.startsWith(`${metric}{`))
  return Object.fromEntries(
    lines.map((line) => [line.slice(metric.length, line.lastIndexOf(' ')), Number(line.split(' ').at(-1))]),
  )
}

describe('the metrics of jobs', () => {
  it('tell how runs ended and how long they had been due', async () => {
    const [one, two] = await newJobProcesses([obedient, other])
    const well = await one.enqueue('obedient')
    await one.ctx.databases.primary.sql`update holdfast.jobs set run_at = run_at - interval '40 seconds'`
    await one.run(well)
    // Delivered again: nobody ran it.
    expect(await two.run(well)).toBe('not-ours')
    const badly = await one.enqueue('obedient', 'fail')
    await one.run(badly)
    await one.due(badly)
    await one.run(badly)
    await one.run(await one.enqueue('obedient', 'later'))
    expect(await samples(one, 'holdfast_job_run_duration_seconds_count')).toEqual({
      '{job="obedient",outcome="completed"}': 1,
      '{job="obedient",outcome="retried"}': 2,
      '{job="obedient",outcome="failed"}': 1,
    })
    expect(await samples(two, 'holdfast_job_run_duration_seconds_count')).toEqual({})
    const waits = await samples(one, 'holdfast_job_wait_seconds_bucket')
    expect([30, 120].map((le) => waits[`{le="${le}",job="obedient"}`])).toEqual([3, 4])
  })

  it('count what is open, by definition, and not what has ended', async () => {
    const [one] = await newJobProcesses([obedient, other])
    await one.run(await one.enqueue('obedient'))
    await one.enqueue('obedient', null, { delayMs: 60_000 })
    await one.enqueue('other')
    await one.enqueue('other')
    await one.ctx.databases.primary.sql`
      update holdfast.jobs set run_at = run_at - interval '40 seconds' where name = 'other'`
    await watchJobs(one.ctx)
    expect(await samples(one, 'holdfast_jobs_open')).toEqual({
      '{job="obedient",status="queued"}': 1,
      '{job="obedient",status="running"}': 0,
      '{job="obedient",status="cancelling"}': 0,
      '{job="other",status="queued"}': 2,
      '{job="other",status="running"}': 0,
      '{job="other",status="cancelling"}': 0,
    })
    const oldest = await samples(one, 'holdfast_jobs_oldest_due_age_seconds')
    expect(oldest['{job="obedient"}']).toBe(0)
    expect(oldest['{job="other"}']).toBeGreaterThanOrEqual(40)
    await one.ctx.databases.primary.sql`delete from holdfast.jobs`
    await watchJobs(one.ctx)
    expect(await samples(one, 'holdfast_jobs_open')).toEqual({})
  })
})

describe('an alert', () => {
  it('is raised when a job has failed for good, and not for an attempt', async () => {
    const [one] = await newJobProcesses([obedient])
    const raise = vi.spyOn(one.ctx.alerts, 'raise')
    const jobId = await one.enqueue('obedient', 'fail')
    await one.run(jobId)
    expect(raise).not.toHaveBeenCalled()
    await one.due(jobId)
    await one.run(jobId)
    expect(raise.mock.calls).toEqual([
      [
        {
          kind: 'job_failed',
          subject: 'obedient',
          message: expect.stringContaining(`holdfast job show ${jobId}`),
        },
      ],
    ])
  })

  it('is raised when a job is due for longer than the service level', async () => {
    const [one] = await newJobProcesses([obedient, other])
    const raise = vi.spyOn(one.ctx.alerts, 'raise')
    await one.enqueue('obedient')
    await one.enqueue('other')
    const { sql } = one.ctx.databases.primary
    await sql`update holdfast.jobs set run_at = run_at - interval '11 minutes' where name = 'other'`
    await sql`update holdfast.jobs set run_at = run_at - interval '9 minutes' where name = 'obedient'`
    await watchJobs(one.ctx)
    expect(raise.mock.calls.map(([{ kind, subject }]) => [kind, subject])).toEqual([['jobs_lag', 'other']])
  })
})
