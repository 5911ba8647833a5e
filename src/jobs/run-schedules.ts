import { randomUUID } from 'node:crypto'
import {
  moveSchedule,
  readSchedules,
  readServerTime,
  recordLastRun,
  type Scheduled,
  type ScheduleRow,
  type ScheduleTarget,
  scheduledBy,
} from '../db/schedules.ts'
import { reached } from '../db/steps.ts'
import type { Tx } from '../db/tx.ts'
import type { JobContext } from './context.ts'
import { type EnqueuedBatch, parseParams, recordBatchJob } from './enqueue-batch.ts'
import { parseInput, recordScheduledJob } from './enqueue-job.ts'
import type { Definitions } from './schedule-definition.ts'
import { nextDue, type Plan, planRuns } from './schedules.ts'

/**
 * Enqueues what is due. A tick of the queue asks, and so does each worker at boot and every minute: the queue is only
 * in time, the table is right.
 *
 * The races, and what closes them:
 * 1. Two look at once. The job is recorded in the transaction that moves the schedule from the revision that was read;
 *    whoever comes second moves nothing, and records nothing.
 * 2. A crash between the two. They are one transaction; of what the queue was not told the workers' assertion tells it.
 * 3. Clocks that differ. What time it is, PostgreSQL says; the clocks of workers and of Redis only say when to ask.
 * 4. The schedule is declared anew meanwhile. That raises its revision as well.
 */
/** `existed`: the due time is done by a job that was open already, of a batch that is unique by its parameters. */
export type ScheduledRun = EnqueuedBatch & { dueAt: Date; of: Scheduled }

export type Looked = {
  name: string
  /** what this look enqueued */
  runs: ScheduledRun[]
  /** the first due time that is not done, and how long until then by the database's clock; negative: it has passed */
  nextDueAt: Date
  inMs: number
}

/** How late a due time may be before it is an alert. */
const overdueMs = 120_000

export type LookOptions = {
  /** tests move the time */
  now?: () => Promise<Date>
}

/** Looks at the schedules of these names. One that fails keeps the others from nothing. */
export async function runSchedules(
  ctx: JobContext,
  definitions: Definitions,
  names: readonly string[],
  { now = () => readServerTime(ctx.databases.primary.sql) }: LookOptions = {},
): Promise<Looked[]> {
  const looked: Looked[] = []
  const rows = await readSchedules(ctx.databases.primary.sql, names)
  const time = await now()
  for (const row of rows) {
    const { name } = row
    try {
      const plan = planRuns(row, row.doneUntil, time)
      const runs = plan.doneUntil > row.doneUntil ? await enqueueDue(ctx, definitions, row, plan) : []
      for (const { dueAt, jobId, existed } of runs)
        ctx.log.info(
          { schedule: name, dueAt, jobId },
          existed ? 'due, and open already' : 'due, and enqueued',
        )
      const nextDueAt = nextDue(row, plan.doneUntil)
      looked.push({ name, runs, nextDueAt, inMs: nextDueAt.getTime() - time.getTime() })
    } catch (err) {
      ctx.log.error({ err, schedule: name }, 'what is due could not be enqueued; the next look tries again')
    }
  }
  return looked
}

async function enqueueDue(
  ctx: JobContext,
  definitions: Definitions,
  row: ScheduleRow,
  { due, doneUntil }: Plan,
): Promise<ScheduledRun[]> {
  // Outside the transaction: a schema may be slow.
  const record = await recorderOf(definitions, row)
  const enqueued = await ctx.databases.primary.transaction(async (tx) => {
    const runs: ScheduledRun[] = []
    if (!(await moveSchedule(tx, row, doneUntil))) return runs
    await reached('schedule.moved')
    for (const dueAt of due) runs.push({ dueAt, of: scheduledBy(row.target), ...(await record(tx, dueAt)) })
    const last = runs.at(-1)
    if (last) await recordLastRun(tx, row.name, last.dueAt, last.jobId)
    await reached('schedule.recorded')
    return runs
  })
  await reached('schedule.committed')
  return enqueued
}

/** How the work of one due time is recorded; the only place that knows what kinds of work there are. */
async function recorderOf(
  { batches, jobs }: Definitions,
  { name, target }: { name: string; target: ScheduleTarget },
): Promise<(tx: Tx, dueAt: Date) => Promise<EnqueuedBatch>> {
  const missing = (what: string) => new Error(`schedule ${name}: this worker's config has no ${what}`)
  if ('job' in target) {
    const job = jobs.get(target.job)
    if (!job) throw missing(`job named ${target.job}`)
    await parseInput(job, target.input)
    return async (tx, dueAt) => ({
      ...(await recordScheduledJob(tx, job, target.input, { schedule: name, dueAt })),
      existed: false,
    })
  }
  const batch = batches.get(target.batch)
  if (!batch) throw missing(`batch named ${target.batch}`)
  await parseParams(batch, target.params)
  return (tx, dueAt) => recordBatchJob(tx, batch, target.params, randomUUID(), { schedule: name, dueAt })
}

/** Raises an alert for each schedule whose due time has passed for too long without having been enqueued. */
export async function alertOverdueSchedules(
  ctx: JobContext,
  names: readonly string[],
  { now = () => readServerTime(ctx.databases.primary.sql) }: LookOptions = {},
): Promise<void> {
  if (names.length === 0) return
  const rows = await readSchedules(ctx.databases.primary.sql, names)
  const time = (await now()).getTime()
  for (const row of rows) {
    const dueAt = firstOpen(row)
    const lateMs = time - dueAt.getTime()
    if (lateMs < overdueMs) continue
    ctx.alerts.raise({
      kind: 'overdue',
      subject: row.name,
      message: `the schedule ${row.name} was due at ${dueAt.toISOString()}, ${Math.round(lateMs / 60_000)} minutes ago, and that is not enqueued yet; the log says why, or how many missed times are enqueued before it`,
    })
  }
}

/** Where the expression, which an older Holdfast took, cannot be read any more: what is done is what is known. */
function firstOpen(row: ScheduleRow): Date {
  try {
    return nextDue(row, row.doneUntil)
  } catch {
    return row.doneUntil
  }
}
