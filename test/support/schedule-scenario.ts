import assert from 'node:assert/strict'
import { declareSchedule, readServerTime } from '../../src/db/schedules.ts'
import type { BatchDefinition } from '../../src/jobs/batch-definition.ts'
import type { JobContext } from '../../src/jobs/context.ts'
import { runSchedules } from '../../src/jobs/run-schedules.ts'
import type { Scenario } from './scenarios.ts'

const hourMs = 3_600_000
const name = 'nightly'

/** A schedule that has missed three hours: its look is killed, and another process looks. */
export function dueSchedule(batch: BatchDefinition): Scenario {
  const look = async (ctx: JobContext) => {
    await runSchedules(ctx, { batches: new Map([[batch.name, batch]]), jobs: new Map() }, [name])
  }
  return {
    arrange: async ({ databases }) => {
      const { sql } = databases.primary
      const now = await readServerTime(sql)
      const target = { batch: batch.name, params: {} }
      // Half past the hour, whatever time it is: no due time comes while this runs.
      const minute = (now.getUTCMinutes() + 30) % 60
      const schedule = { name, cron: `${minute} * * * *`, tz: 'UTC', missed: 'backfill' as const, target }
      await declareSchedule(sql, schedule, new Date(now.getTime() - 3 * hourMs))
    },
    act: look,
    finish: look,
    check: async ({ databases }) => {
      const rows = await databases.primary.sql<{ jobs: number; times: number }[]>`
        select count(*)::int as jobs, count(distinct scheduled_for)::int as times
        from holdfast.batch_jobs where schedule = ${name}`
      assert.deepEqual({ ...rows[0] }, { jobs: 3, times: 3 })
    },
  }
}
