import { readSchedules, readServerTime, type Scheduled, scheduledBy } from '../db/schedules.ts'
import { type MissedPolicy, nextDue } from '../jobs/schedules.ts'
import type { Context } from './context.ts'

export type ScheduleView = {
  name: string
  /** what is enqueued: a batch or a job, and its name */
  enqueues: Scheduled
  cron: string
  tz: string
  missed: MissedPolicy
  /** the newest due time that was enqueued, and the job that it was enqueued as, or that was open already */
  lastDueAt: Date | null
  lastJobId: string | null
  /** the first due time that is not enqueued; in the past: it waits for a worker */
  nextDueAt: Date
}

/** What the library and the command line show of schedules. */
export class Schedules {
  readonly #ctx: Context

  constructor(ctx: Context) {
    this.#ctx = ctx
  }

  /** Those that workers have declared, as they did, and those of this config that no worker has declared yet. */
  async list(): Promise<ScheduleView[]> {
    const { sql } = this.#ctx.databases.primary
    const rows = await readSchedules(sql)
    const now = await readServerTime(sql)
    const known = new Set(rows.map(({ name }) => name))
    const declared = rows.map((row) => ({ ...row, from: row.doneUntil }))
    const undeclared = [...this.#ctx.config.schedules.values()]
      .filter(({ name }) => !known.has(name))
      .map((schedule) => ({ ...schedule, lastDueAt: null, lastJobId: null, from: now }))
    return [...declared, ...undeclared]
      .map(({ name, target, cron, tz, missed, lastDueAt, lastJobId, from }) => ({
        name,
        enqueues: scheduledBy(target),
        cron,
        tz,
        missed,
        lastDueAt,
        lastJobId,
        nextDueAt: nextDue({ cron, tz }, from),
      }))
      .toSorted((one, other) => (one.name < other.name ? -1 : 1))
  }
}
