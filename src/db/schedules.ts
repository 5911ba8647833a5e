import type { Sql } from './databases.ts'
import type { Json } from './json.ts'
import type { Tx } from './tx.ts'

/**
 * Table schedules: which due times of a schedule are done. A due time is enqueued in the transaction that moves
 * `done_until` beyond it, by compare-and-set on `revision`; so once at most, whoever else looks at the same time.
 */
export type ScheduleTarget =
  | { readonly batch: string; readonly params: Json }
  | { readonly job: string; readonly input: Json }

/** The definition that a schedule enqueues. */
export type Scheduled = { kind: 'batch' | 'job'; name: string }

export function scheduledBy(target: ScheduleTarget): Scheduled {
  return 'job' in target ? { kind: 'job', name: target.job } : { kind: 'batch', name: target.batch }
}

/** The due time of a schedule that a job, or a job of a batch, is made for. */
export type ScheduledTime = { schedule: string; dueAt: Date }

export type ScheduleRow = {
  name: string
  cron: string
  tz: string
  missed: 'skip' | 'run-once' | 'backfill'
  target: ScheduleTarget
  doneUntil: Date
  revision: string
  lastDueAt: Date | null
  lastEnqueuedAt: Date | null
  lastJobId: string | null
}

export async function readServerTime(sql: Sql): Promise<Date> {
  const [row] = await sql<{ now: Date }[]>`select clock_timestamp() as now`
  if (!row) throw new Error('clock_timestamp() returned no row')
  return row.now
}

/** In the order of their names; without `names` all of them. */
export async function readSchedules(sql: Sql, names?: readonly string[]): Promise<ScheduleRow[]> {
  return sql<ScheduleRow[]>`
    select name, cron, tz, missed, target, done_until as "doneUntil", revision::text, last_due_at as "lastDueAt",
      last_enqueued_at as "lastEnqueuedAt", last_job_id as "lastJobId"
    from holdfast.schedules where ${names === undefined} or name = any (${[...(names ?? [])]}::text[]) order by name`
}

/**
 * Records what the config says. A new schedule, and one whose cron or time zone changed, has no past: it begins at
 * `now`. It never goes back behind what is done, so a clock that does makes no due time come twice.
 */
export async function declareSchedule(
  sql: Sql,
  { name, cron, tz, missed, target }: Pick<ScheduleRow, 'name' | 'cron' | 'tz' | 'missed' | 'target'>,
  now: Date,
): Promise<void> {
  await sql`
    insert into holdfast.schedules as s (name, cron, tz, missed, target, done_until)
    values (${name}, ${cron}, ${tz}, ${missed}, ${sql.json(target)}, ${now})
    on conflict (name) do update set cron = excluded.cron, tz = excluded.tz, missed = excluded.missed,
      target = excluded.target, revision = s.revision + 1, asserted_at = clock_timestamp(),
      done_until = case when (s.cron, s.tz) = (excluded.cron, excluded.tz) then s.done_until
        else greatest(s.done_until, excluded.done_until) end
    where (s.cron, s.tz, s.missed, s.target) <> (excluded.cron, excluded.tz, excluded.missed, excluded.target)`
}

/** Compare-and-set; false: another worker was faster, or the schedule was declared anew. */
export async function moveSchedule(
  tx: Tx,
  { name, revision }: Pick<ScheduleRow, 'name' | 'revision'>,
  doneUntil: Date,
): Promise<boolean> {
  const { count } = await tx`
    update holdfast.schedules set done_until = ${doneUntil}, revision = revision + 1
    where name = ${name} and revision = ${revision}::bigint and done_until < ${doneUntil}`
  return count === 1
}

export async function recordLastRun(tx: Tx, name: string, dueAt: Date, jobId: string): Promise<void> {
  await tx`
    update holdfast.schedules set last_due_at = ${dueAt}, last_enqueued_at = clock_timestamp(), last_job_id = ${jobId}
    where name = ${name}`
}

/** Says that a config has these schedules. */
export async function assertSchedules(sql: Sql, names: readonly string[]): Promise<void> {
  await sql`
    update holdfast.schedules set asserted_at = clock_timestamp() where name = any (${[...names]}::text[])`
}

/** The schedules that no running config has had for a time. */
export async function listUnasserted(sql: Sql, forMs: number): Promise<string[]> {
  const rows = await sql<{ name: string }[]>`
    select name from holdfast.schedules where asserted_at < clock_timestamp() - ${forMs} * interval '1 ms'`
  return rows.map(({ name }) => name)
}

/** Forgets a schedule, unless a config has it after all. */
export async function removeUnasserted(sql: Sql, name: string, forMs: number): Promise<boolean> {
  const { count } = await sql`
    delete from holdfast.schedules
    where name = ${name} and asserted_at < clock_timestamp() - ${forMs} * interval '1 ms'`
  return count === 1
}
