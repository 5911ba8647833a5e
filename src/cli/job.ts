import { Command, type Command as CommandType, Option } from 'commander'
import { listAttemptsOf } from '../db/distributed-transactions.ts'
import { type Job, type JobStatus, transactionOfJob } from '../db/jobs.ts'
import type { Json } from '../db/json.ts'
import { unknownJob } from '../jobs/job-control.ts'
import type { Context } from '../workers/context.ts'
import { Jobs } from '../workers/jobs.ts'
import { atLeastOne, command, parsedJson, type Shared, wholeNumber } from './command.ts'
import { describeJob, describeJobs } from './job-print.ts'
import { print, withContext } from './open.ts'

export function jobCommand(): CommandType {
  return new Command('job')
    .description('enqueue jobs, look at them, run failed ones again, cancel')
    .addCommand(listCommand())
    .addCommand(showCommand())
    .addCommand(enqueueCommand())
    .addCommand(retryCommand())
    .addCommand(cancelCommand())
}

const statuses: readonly JobStatus[] = ['queued', 'running', 'cancelling', 'completed', 'failed', 'cancelled']

function listCommand(): CommandType {
  return command('list', 'the jobs, the newest first')
    .option('--job <name>', 'only of this definition')
    .addOption(new Option('--status <status>', 'only in this state').choices(statuses))
    .option('--limit <n>', 'at most so many', atLeastOne, 20)
    .action(async (options: Shared & { job?: string; status?: JobStatus; limit: number }) => {
      const { job, status, limit } = options
      await withContext({ ...options, onlyLooks: true }, async ({ ctx }) => {
        const jobs = await new Jobs(ctx).list({
          limit,
          ...(job === undefined ? {} : { name: job }),
          ...(status === undefined ? {} : { status }),
        })
        print(describeJobs(jobs, Date.now()), options.json === true ? jobs : undefined)
      })
    })
}

function showCommand(): CommandType {
  return command('show', 'what became of a job, attempt by attempt, and what to do')
    .argument('<job>')
    .action(async (jobId: string, options: Shared) => {
      await withContext({ ...options, onlyLooks: true }, async ({ ctx }) => {
        const job = await look(ctx, jobId)
        const transactions = (await listAttemptsOf(ctx.databases.primary.sql, transactionOfJob(jobId))).map(
          ({ attempt, status, compensation, reason, quarantine, participants }) => ({
            attempt,
            status,
            compensation,
            reason,
            quarantine,
            participants,
          }),
        )
        print(
          describeJob(job, transactions, Date.now()),
          options.json === true ? { ...job, transactions } : undefined,
        )
      })
    })
}

type EnqueueFlags = Shared & {
  input: Json
  delayMs?: number
  priority?: number
  deduplication?: string
  wait?: boolean
}

function enqueueCommand(): CommandType {
  return command('enqueue', 'have a job run by the workers')
    .argument('<name>', 'the name of its definition')
    .option('--input <json>', 'its input', parsedJson, null)
    .option('--delay-ms <n>', 'not before so many milliseconds from now', wholeNumber)
    .option('--priority <n>', '0, the default, comes first', wholeNumber)
    .option('--deduplication <id>', 'unless a job of this name with this id is open: then that one')
    .option('--wait', 'until it has ended; exit code 1 unless it completed')
    .action(async (name: string, options: EnqueueFlags) => {
      const { input, delayMs, priority, deduplication } = options
      await withContext({ ...options, onlyLooks: true }, async ({ ctx, signal }) => {
        const jobs = new Jobs(ctx)
        const { jobId } = await jobs.enqueue(name, input, {
          ...(delayMs === undefined ? {} : { delayMs }),
          ...(priority === undefined ? {} : { priority }),
          ...(deduplication === undefined ? {} : { deduplication: { id: deduplication } }),
        })
        if (options.wait !== true) {
          print(`${jobId} enqueued\n`, options.json === true ? { jobId } : undefined)
          return
        }
        const job = await jobs.wait<Json>(jobId, { signal })
        print(describeJob(job, [], Date.now()), options.json === true ? job : undefined)
        if (job.status !== 'completed') process.exitCode = 1
      })
    })
}

function retryCommand(): CommandType {
  return acting('retry', 'run a job that has failed again, or one that waits at once', (jobs, jobId) =>
    jobs.retry(jobId),
  )
}

function cancelCommand(): CommandType {
  return acting(
    'cancel',
    'end a job for good: what it staged is rolled back, what its effects did is compensated',
    (jobs, jobId) => jobs.cancel(jobId),
  )
}

function acting(
  name: string,
  description: string,
  act: (jobs: Jobs, jobId: string) => Promise<JobStatus>,
): CommandType {
  return command(name, description)
    .argument('<job>')
    .action(async (jobId: string, options: Shared) => {
      // Every database: what a job has staged may lie in any of them.
      await withContext(options, async ({ ctx }) => {
        const status = await act(new Jobs(ctx), jobId)
        print(`${jobId} is ${status}\n`, options.json === true ? { jobId, status } : undefined)
      })
    })
}

async function look(ctx: Context, jobId: string): Promise<Job> {
  const job = await new Jobs(ctx).get(jobId)
  if (!job) throw unknownJob(jobId)
  return job
}
