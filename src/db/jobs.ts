import type { Sql } from './databases.ts'
import { type EventRunner, isSqlTag, rowsOf } from './event-runner.ts'
import type { Json } from './json.ts'
import type { ScheduledTime } from './schedules.ts'
import type { Tx } from './tx.ts'

/**
 * Table jobs: users' jobs, each with its control row. Never written inside staged work, except by whoever enqueues. What
 * a job's work did, the transaction of its name says; the row follows.
 */
export type JobStatus = 'queued' | 'running' | 'cancelling' | 'completed' | 'failed' | 'cancelled'

export type JobError = {
  message: string
  sqlstate: string | null
  /** ISO 8601 */
  at: string
  /** the number of the attempt that failed, from 1 */
  attempt: number
}

export type Job<Result = Json> = {
  id: string
  name: string
  /** as it was given; each run parses it */
  input: Json
  status: JobStatus
  /** 0 comes first */
  priority: number
  /** not before this time */
  runAt: Date
  /** attempts that failed */
  attempts: number
  /** the newest failures, oldest first */
  errors: readonly JobError[]
  /** what its effects returned, as JSON carries it; null where they returned nothing, and until it is completed */
  result: Result
  deduplication: string | null
  correlationId: string
  /** the schedule that it was made by, and the due time that it was made for; null: somebody enqueued it */
  schedule: string | null
  scheduledFor: Date | null
  createdAt: Date
  startedAt: Date | null
  finishedAt: Date | null
}

const columns = `id, name, input, status, priority, run_at as "runAt", attempts, errors, result,
  dedup_key as deduplication, correlation_id as "correlationId", schedule, scheduled_for as "scheduledFor",
  created_at as "createdAt", started_at as "startedAt", finished_at as "finishedAt"`

/** The most failures that a row keeps, and the most characters of each message. */
export const keptErrors = 20
export const maxMessage = 1_000

const prefix = 'job:'

/** The name of a job's transaction. One for all its attempts: a committed name stays taken, so its work commits once. */
export function transactionOfJob(jobId: string): string {
  return `${prefix}${jobId}`
}

/** The job that a transaction is of. */
export function jobOfTransaction(name: string): string {
  return name.slice(prefix.length)
}

/** The transactions of a job that are not proved aborted; for use in a query on jobs j. */
const standing = `select from holdfast.distributed_transactions t
  where t.name = '${prefix}' || j.id and t.status not in ('rolled_back', 'cleaned_up')`

const ownerIsDead = `(j.owner is null or not exists (
  select from holdfast.workers w where w.id = j.owner and w.lease_until > clock_timestamp()))`

export type NewJob = {
  name: string
  input: string
  delayMs: number
  priority: number
  deduplication: string | null
  correlationId: string | null
}

/** Records a job by itself; returns its id. */
export async function insertJob(sql: Sql, job: NewJob): Promise<string> {
  const { name, input, delayMs, priority, deduplication, correlationId } = job
  const [row] = await sql<{ id: string }[]>`
    select holdfast.enqueue(${name}, ${input}::text::jsonb, ${delayMs}::bigint, ${priority}::integer,
      ${deduplication}::text, ${correlationId}::text) as id`
  return idOf(row)
}

/** The same in the caller's transaction, on the primary database: the job exists exactly if that commits. */
export async function insertJobIn(runner: EventRunner, job: NewJob): Promise<string> {
  if (isSqlTag(runner, 'enqueue')) return insertJob(runner, job)
  const { name, input, delayMs, priority, deduplication, correlationId } = job
  const answer = await runner.query(
    'select holdfast.enqueue($1, $2::text::jsonb, $3::bigint, $4::integer, $5::text, $6::text) as id',
    [name, input, delayMs, priority, deduplication, correlationId],
  )
  return idOf(rowsOf(answer, 'enqueue')[0] as { id: string } | undefined)
}

/** In the transaction that records it: which due time a job is made for. */
export async function markScheduled(tx: Tx, id: string, { schedule, dueAt }: ScheduledTime): Promise<void> {
  await tx`update holdfast.jobs set schedule = ${schedule}, scheduled_for = ${dueAt} where id = ${id}`
}

function idOf(row: { id: string } | undefined): string {
  if (row === undefined) throw new Error('holdfast.enqueue answered with no row')
  return row.id
}

export async function findJob(sql: Sql, id: string): Promise<Job | undefined> {
  const [row] = await sql<Job[]>`select ${sql.unsafe(columns)} from holdfast.jobs where id = ${id}`
  return row
}

export type JobFilter = { name?: string; status?: JobStatus; limit?: number }

/** The newest first. */
export async function listJobs(sql: Sql, filter: JobFilter = {}): Promise<Job[]> {
  const { name = null, status = null, limit = 100 } = filter
  return sql<Job[]>`
    select ${sql.unsafe(columns)} from holdfast.jobs
    where (${name}::text is null or name = ${name}) and (${status}::text is null or status = ${status})
    order by created_at desc, id desc limit ${limit}`
}

/** The open jobs of one name. */
export type OpenJobs = {
  name: string
  queued: number
  running: number
  cancelling: number
  /** how long the one that is due for the longest waits; 0 when none is due */
  oldestDueSeconds: number
}

/** Of every name that has open jobs. */
export async function readOpenJobs(sql: Sql): Promise<OpenJobs[]> {
  // Apart, as the indexes are.
  return sql<OpenJobs[]>`
    select name, sum(queued)::int as queued, sum(running)::int as running, sum(cancelling)::int as cancelling,
      max(oldest) as "oldestDueSeconds"
    from (
      select name, count(*) as queued, 0 as running, 0 as cancelling,
        greatest(0, extract(epoch from clock_timestamp() - min(run_at)))::float8 as oldest
      from holdfast.jobs where status = 'queued' group by name
      union all
      select name, 0, count(*) filter (where status = 'running'), count(*) filter (where status = 'cancelling'), 0
      from holdfast.jobs where status in ('running', 'cancelling') group by name) as open
    group by name order by name`
}

export type DueJob = { id: string; name: string; priority: number }

/**
 * What a worker that knows these names has to take up, at most `limit`: first what nobody lives for any more, since it may
 * hold locks; then what is due, by priority. `running`: what this process has in hand.
 */
export async function listDueJobs(
  sql: Sql,
  names: readonly string[],
  running: readonly string[],
  limit: number,
  me: string,
): Promise<DueJob[]> {
  const orphans = await sql<DueJob[]>`
    select id, name, 0 as priority from holdfast.jobs j
    where status in ('running', 'cancelling') and name = any (${[...names]}) and id <> all (${[...running]})
      and (j.owner = ${me} or ${sql.unsafe(ownerIsDead)})
    limit ${limit}`
  const queued = await sql<DueJob[]>`
    select id, name, priority from holdfast.jobs
    where status = 'queued' and run_at <= clock_timestamp() and name = any (${[...names]})
    order by priority, run_at, id limit ${limit}`
  return [...orphans, ...queued].slice(0, limit)
}

/** A run of a job: its fence is the number, which each claim raises. */
export type ClaimedJob = Job & {
  run: string
  /** how often in a row it ended for reasons that are not its own, its worker's death included */
  deferrals: number
  /** attempts that failed since it was enqueued or redriven */
  failed: number
  /** its last run died */
  abandoned: boolean
  /** how long this run was due */
  dueSeconds: number
}

/**
 * What a crash of the server may undo, on every row that a statement is for: whatever follows it is flushed after it, and
 * until something has followed it nobody has acted on it.
 */
const quietly = `set_config('synchronous_commit', 'off', true) is not null`

/**
 * Makes `owner` the one who runs a job: one that is due, or whose run has died. Undefined: it is neither, or another was
 * faster. Within one process the caller sees to it that a job runs once.
 */
export async function claimJob(
  sql: Sql,
  { id, name }: Pick<Job, 'id' | 'name'>,
  owner: string,
): Promise<ClaimedJob | undefined> {
  const [row] = await sql<ClaimedJob[]>`
    update holdfast.jobs j set
      status = case when j.status = 'queued' then 'running' else j.status end,
      owner = ${owner}, run = j.run + 1, started_at = coalesce(j.started_at, clock_timestamp()),
      deferrals = j.deferrals + case when old.was = 'running' then 1 else 0 end
    from (select status as was from holdfast.jobs where id = ${id} and name = ${name} for no key update) old
    where j.id = ${id} and ${sql.unsafe(quietly)} and (
      (j.status = 'queued' and j.run_at <= clock_timestamp())
      or (j.status in ('running', 'cancelling') and (j.owner = ${owner} or ${sql.unsafe(ownerIsDead)})))
    returning ${sql.unsafe(columns)}, run::text, deferrals, attempts - attempts_before as failed,
      old.was = 'running' as abandoned,
      greatest(0, extract(epoch from clock_timestamp() - run_at))::float8 as "dueSeconds"`
  return row
}

export type Run = Pick<ClaimedJob, 'id' | 'run'> & { owner: string }

/**
 * What a run has to know before it does what cannot be undone, with whether `attempt` was recorded as one that can be
 * compensated. Undefined: another run has the job.
 */
export async function readRun(
  sql: Sql,
  { id, run, owner }: Run,
  attempt?: string,
): Promise<{ status: JobStatus; compensates: boolean } | undefined> {
  const [row] = await sql<{ status: JobStatus; compensates: boolean }[]>`
    select status, coalesce((select compensates from holdfast.distributed_transactions
                             where attempt = ${attempt ?? null}::uuid), false) as compensates
    from holdfast.jobs where id = ${id} and run = ${run}::bigint and owner = ${owner}`
  return row
}

/**
 * Of the jobs that a process has in hand, those whose runs should stop: cancelled, or another's now. `runs` are ids with
 * the numbers of their runs.
 */
export async function listRevokedRuns(
  sql: Sql,
  owner: string,
  runs: readonly { id: string; run: string }[],
): Promise<string[]> {
  const rows = await sql<{ id: string }[]>`
    select r.id from unnest(${runs.map(({ id }) => id)}::text[], ${runs.map(({ run }) => run)}::bigint[]) r (id, run)
    left join holdfast.jobs j on j.id = r.id
    where j.run is distinct from r.run or j.owner is distinct from ${owner} or j.status = 'cancelling'`
  return rows.map(({ id }) => id)
}

/** Its transaction has committed, so whoever knows it says so, whatever became of the run; after a crash somebody says it again. */
export async function completeJob(sql: Sql, id: string, result: Json): Promise<void> {
  await sql`
    update holdfast.jobs set status = 'completed', owner = null, finished_at = clock_timestamp(),
      result = ${result === null ? null : sql.json(result)}
    where id = ${id} and status in ('queued', 'running', 'cancelling') and ${sql.unsafe(quietly)}`
}

/** Gives a job back that is to be run again, for a reason that is not its own. */
export async function deferJob(
  sql: Sql,
  { id, run, owner }: Run,
  { waitMs, counts }: { waitMs: number; counts: boolean },
): Promise<void> {
  await sql`
    update holdfast.jobs j set owner = null,
      status = case when j.status = 'running' then 'queued' else j.status end,
      deferrals = deferrals + ${counts ? 1 : 0},
      run_at = clock_timestamp() + make_interval(secs => ${waitMs / 1000})
    where j.id = ${id} and j.run = ${run}::bigint and j.owner = ${owner} and j.status in ('running', 'cancelling')`
}

/**
 * Records that an attempt failed: to be tried again after `waitMs`, or for good. A cancel that came meanwhile wins: it is
 * `cancelled`, unless a transaction of it stands, which a worker then ends.
 */
export async function failJob(
  sql: Sql,
  { id, run, owner }: Run,
  error: { message: string; sqlstate: string | undefined },
  next: { waitMs: number } | 'give-up',
): Promise<JobStatus | undefined> {
  const waitMs = next === 'give-up' ? 0 : next.waitMs
  const to = next === 'give-up' ? 'failed' : 'queued'
  const entry = { message: error.message.slice(0, maxMessage), sqlstate: error.sqlstate ?? null }
  const [row] = await sql<{ status: JobStatus }[]>`
    update holdfast.jobs j set owner = null, deferrals = 0, attempts = attempts + 1,
      status = ${sql.unsafe(endOfRun)},
      run_at = case when ${to} = 'queued' then clock_timestamp() + make_interval(secs => ${waitMs / 1000}) else run_at end,
      finished_at = case when ${to} = 'failed' or j.status = 'cancelling' then clock_timestamp() end,
      errors = (
        select jsonb_agg(e order by n) from (
          select e, n from jsonb_array_elements(j.errors || jsonb_build_array(${sql.json(entry)}::jsonb
            || jsonb_build_object('at', to_jsonb(clock_timestamp()), 'attempt', j.attempts + 1))) with ordinality as x(e, n)
          order by n desc limit ${keptErrors}) kept)
    from (select ${to}::text as target) step
    where j.id = ${id} and j.run = ${run}::bigint and j.owner = ${owner} and j.status in ('running', 'cancelling')
    returning j.status`
  return row?.status
}

const endOfRun = `case when j.status <> 'cancelling' then step.target
  when exists (${standing}) then 'cancelling' else 'cancelled' end`

/** Asks for a cancel; the status after it, or undefined where the job is at another end. */
export async function cancelJobRow(sql: Sql, id: string): Promise<JobStatus | undefined> {
  const [row] = await sql<{ status: JobStatus }[]>`
    update holdfast.jobs j set
      status = case when j.status in ('failed', 'cancelled')
                      or (j.status = 'queued' and not exists (${sql.unsafe(standing)})) then 'cancelled'
               else 'cancelling' end,
      finished_at = case when j.status in ('failed', 'cancelled') then j.finished_at
                    when j.status = 'queued' and not exists (${sql.unsafe(standing)}) then clock_timestamp() end
    where j.id = ${id} and j.status <> 'completed' returning j.status`
  return row?.status
}

/** Makes `cancelled` of what nobody runs and of which no transaction stands. `run`: also of the caller's own run. */
export async function settleCancelled(sql: Sql, id: string, run?: Run): Promise<boolean> {
  const rows = await sql`
    update holdfast.jobs j set status = 'cancelled', owner = null, finished_at = clock_timestamp()
    where j.id = ${id} and j.status = 'cancelling' and not exists (${sql.unsafe(standing)})
      and (${sql.unsafe(ownerIsDead)} or (j.owner = ${run?.owner ?? null} and j.run = ${run?.run ?? null}::bigint))
    returning 1`
  return rows.length > 0
}

/** Runs it (again) at once, with all its attempts before it; undefined where it is neither failed nor queued. */
export async function requeueJob(sql: Sql, id: string): Promise<JobStatus | undefined> {
  const [row] = await sql<{ status: JobStatus }[]>`
    update holdfast.jobs set status = 'queued', run_at = clock_timestamp(), deferrals = 0,
      attempts_before = case when status = 'failed' then attempts else attempts_before end, finished_at = null
    where id = ${id} and status in ('failed', 'queued') returning status`
  return row?.status
}

/** Whether somebody goes on with the transaction of this job before long. */
export async function isResumed(sql: Sql, transaction: string): Promise<boolean> {
  const rows = await sql`
    select from holdfast.jobs where ${prefix} || id = ${transaction}
      and (status = 'running' or (status = 'queued' and run_at < clock_timestamp() + interval '1 minute'))`
  return rows.length > 0
}

/** Removes what has ended, with its input and its result. What failed is kept longer: somebody may redrive it. */
export async function removeOldJobs(
  tx: Tx,
  { endedMs, failedMs }: { endedMs: number; failedMs: number },
  limit: number,
): Promise<number> {
  const { count } = await tx`
    delete from holdfast.jobs where id in (
      select id from holdfast.jobs j
      where created_at < clock_timestamp() - make_interval(secs => ${Math.min(endedMs, failedMs) / 1000})
        and finished_at < clock_timestamp() - make_interval(
          secs => case when status = 'failed' then ${failedMs / 1000}::float8 else ${endedMs / 1000}::float8 end)
        and status in ('completed', 'failed', 'cancelled')
        -- Its compensation asks for the input.
        and not exists (select from holdfast.distributed_transactions t
                        where t.name = ${prefix} || j.id and t.compensation in ('due', 'failed'))
      limit ${limit} for update skip locked)`
  return count
}
