import { findJob, type Job } from '../../src/db/jobs.ts'
import type { JobContext } from '../../src/jobs/context.ts'
import { type EnqueueOptions, enqueueJob } from '../../src/jobs/enqueue-job.ts'
import type { JobDefinition } from '../../src/jobs/job-definition.ts'
import { type JobOutcome, type JobRunner, registerJob, runJob } from '../../src/jobs/run-job.ts'
import { RunningJobs } from '../../src/jobs/running-jobs.ts'
import { newDatabases, openContext } from './database.ts'

const never = new AbortController().signal

/** A process that runs jobs, without the queues: the test delivers. */
export class JobProcess {
  readonly ctx: JobContext
  readonly runner: JobRunner

  constructor(ctx: JobContext, definitions: readonly JobDefinition[]) {
    this.ctx = ctx
    for (const definition of definitions) registerJob(ctx, definition)
    const byName = new Map(definitions.map((definition) => [definition.name, definition]))
    this.runner = { ctx, definitions: byName, running: new RunningJobs() }
  }

  async enqueue(name: string, input: unknown = null, options?: EnqueueOptions): Promise<string> {
    const definition = this.runner.definitions.get(name)
    if (!definition) throw new Error(`no ${name}`)
    return (await enqueueJob(this.ctx, definition, input, options)).jobId
  }

  async run(jobId: string, signal: AbortSignal = never): Promise<JobOutcome> {
    return runJob(this.runner, await this.job(jobId), signal)
  }

  /** The pause before the next attempt is over. */
  async due(jobId: string): Promise<void> {
    await this.ctx.databases.primary
      .sql`update holdfast.jobs set run_at = clock_timestamp() where id = ${jobId}`
  }

  async job(jobId: string): Promise<Job> {
    const job = await findJob(this.ctx.databases.primary.sql, jobId)
    if (!job) throw new Error(`no ${jobId}`)
    return job
  }

  /** Others take it for dead. */
  async expireLease(): Promise<void> {
    await this.ctx.databases.primary.sql`
      update holdfast.workers set lease_until = clock_timestamp() - interval '1 second' where id = ${this.ctx.lease.id}`
  }

  /** How many rows the work left in each database. */
  async orders(): Promise<number[]> {
    return Promise.all(
      this.ctx.databases.all.map(async ({ sql }) => (await sql`select 1 from orders`).length),
    )
  }

  async transactions(jobId: string): Promise<string[]> {
    const rows = await this.ctx.databases.primary.sql<{ status: string }[]>`
      select status from holdfast.distributed_transactions where name = ${`job:${jobId}`} order by created_at`
    return rows.map(({ status }) => status)
  }
}

/** Two processes over the same databases, with a table for the work in each. */
export async function newJobProcesses(
  definitions: readonly JobDefinition[],
  others: Record<string, 'east' | 'west'> = {},
): Promise<[JobProcess, JobProcess]> {
  const urls = await newDatabases(others)
  const [one, two] = [await openContext(urls), await openContext(urls)]
  for (const { sql } of one.databases.all) await sql`create table orders (id int)`
  return [new JobProcess(one, definitions), new JobProcess(two, definitions)]
}
