import assert from 'node:assert/strict'
import { declareSchedule, readServerTime } from '../../src/db/schedules.ts'
import type { BatchDefinition } from '../../src/jobs/batch-definition.ts'
import type { JobContext } from '../../src/jobs/context.ts'
import { defineJob } from '../../src/jobs/job-definition.ts'
import { runSchedules } from '../../src/jobs/run-schedules.ts'
import type { Scenario } from './scenarios.ts'

const hourMs = 3_600_000
const name = 'nightly'
const note = defineJob({ name: 'note', stage: () => null })

/** A schedule that has missed three hours: its look is killed, and another process looks. */
export function dueSchedule(of: BatchDefinition | 'job'): Scenario {
  const batches = of === 'job' ? [] : [of]
  const definitions = {
    batches: new Map(batches.map((batch) => [batch.name, batch])),
    jobs: new Map([[note.name, note]]),
  }
  const target = of === 'job' ? { job: note.name, input: { n: 1 } } : { batch: of.name, params: {} }
  const look = async (ctx: JobContext) => {
    await runSchedules(ctx, definitions, [name])
  }
  return {
    arrange: async ({ databases }) => {
      const { sql } = databases.primary
      const now = await readServerTime(sql)
      // Half past the hour, whatever time it is: no due time comes while this runs.
      const minute = (now.getUTCMinutes() + 30) % 60
      const schedule = { name, cron: `${minute} * * * *`, tz: 'UTC', missed: 'backfill' as const, target }
      await declareSchedule(sql, schedule, new Date(now.getTime() - 3 * hourMs))
    },
    act: look,
    finish: look,
    check: async ({ databases }) => {
      const { sql } = databases.primary
      const rows = await sql<{ jobs: number; times: number }[]>`
        select count(*)::int as jobs, count(distinct scheduled_for)::int as times
        from ${sql(of === 'job' ? 'holdfast.jobs' : 'holdfast.batch_jobs')} where schedule = ${name}`
      assert.deepEqual({ ...rows[0] }, { jobs: 3, times: 3 })
    },
  }
}
