import { Command, type Command as CommandType, Option } from 'commander'
import type { BatchStatus } from '../db/batch-jobs.ts'
import type { Json } from '../db/json.ts'
import { unknownBatchJob } from '../jobs/enqueue-batch.ts'
import { pause } from '../jobs/pause.ts'
import { Batches } from '../workers/batches.ts'
import {
  describeDryRun,
  describeJob,
  describeJobs,
  describeVerification,
  type JobView,
} from './batch-print.ts'
import { BatchBar } from './batch-progress.ts'
import { atLeastOne, command, parsedJson, type Shared } from './command.ts'
import { print, withContext } from './open.ts'

export function batchCommand(): CommandType {
  return new Command('batch')
    .description('start, stop, watch and prove batch jobs')
    .addCommand(listCommand())
    .addCommand(showCommand())
    .addCommand(enqueueCommand())
    .addCommand(pauseCommand())
    .addCommand(resumeCommand())
    .addCommand(cancelCommand())
    .addCommand(watchCommand())
    .addCommand(verifyCommand())
    .addCommand(retryCommand())
}

type Run = { batches: Batches; signal: AbortSignal }

/** All of it is in the primary database; no other one has to answer. */
function withBatches(options: Shared, run: (opened: Run) => Promise<void>): Promise<void> {
  return withContext({ ...options, onlyLooks: true }, ({ ctx, signal }) =>
    run({ batches: new Batches(ctx), signal }),
  )
}

const statuses: readonly BatchStatus[] = [
  'queued',
  'running',
  'pausing',
  'paused',
  'cancelling',
  'cancelled',
  'completed',
  'failed',
]

function listCommand(): CommandType {
  return command('list', 'the jobs, the newest first')
    .option('--batch <name>', 'only of this batch')
    .addOption(new Option('--status <status>', 'only in this state').choices(statuses))
    .option('--limit <n>', 'at most so many', atLeastOne, 20)
    .action(async (options: Shared & { batch?: string; status?: BatchStatus; limit: number }) => {
      await withBatches(options, async ({ batches }) => {
        const { batch, status, limit } = options
        const jobs = await batches.list({
          limit,
          ...(batch === undefined ? {} : { batch }),
          ...(status === undefined ? {} : { status }),
        })
        const views = await Promise.all(jobs.map(async (job) => viewOf(job, await batches.progress(job.id))))
        print(describeJobs(views, Date.now()), options.json === true ? views : undefined)
      })
    })
}

function showCommand(): CommandType {
  return command('show', 'how far a job is, what failed, and what to do')
    .argument('<job>')
    .option('--failures <n>', 'how many rows that failed to show', atLeastOne, 20)
    .action(async (jobId: string, options: Shared & { failures: number }) => {
      await withBatches(options, async ({ batches }) => {
        const view = await look(batches, jobId)
        const failures = (await batches.failures(jobId, options.failures)).map((f) => ({
          ...f,
          id: String(f.id),
        }))
        const runs = await batches.runs(jobId, 20)
        print(
          describeJob(view, failures, runs, Date.now()),
          options.json === true ? numbers({ ...view, failures, runs }) : undefined,
        )
      })
    })
}

function enqueueCommand(): CommandType {
  return command('enqueue', 'have a batch run by the workers')
    .argument('<batch>')
    .option('--params <json>', 'its parameters', parsedJson, {})
    .option('--dry-run', 'stage its first chunks here, roll them back, and say what they took')
    .option('--chunks <n>', 'how many, with --dry-run', atLeastOne, 3)
    .action(async (batch: string, options: Shared & { params: Json; dryRun?: boolean; chunks: number }) => {
      if (options.dryRun === true) return dryRun(batch, options)
      await withBatches(options, async ({ batches }) => {
        const enqueued = await batches.enqueue(batch, options.params)
        const text = enqueued.existed ? 'is open already' : 'enqueued'
        print(`${enqueued.jobId} ${text}\n`, options.json === true ? enqueued : undefined)
      })
    })
}

/** All databases of the batch have to answer. */
async function dryRun(batch: string, options: Shared & { params: Json; chunks: number }): Promise<void> {
  await withContext(options, async ({ ctx, signal }) => {
    const { chunks, params } = options
    const run = await new Batches(ctx).dryRun(batch, params, { chunks, signal })
    print(describeDryRun(run), options.json === true ? run : undefined)
    if (run.error !== null) process.exitCode = 1
  })
}

function pauseCommand(): CommandType {
  return forced('pause', 'no chunk begins any more, until it is resumed', (batches, jobId, force) =>
    batches.pause(jobId, { force }),
  )
}

function cancelCommand(): CommandType {
  return forced('cancel', 'end a job for good; what its chunks did stays', (batches, jobId, force) =>
    batches.cancel(jobId, { force }),
  )
}

function forced(
  name: string,
  description: string,
  act: (batches: Batches, jobId: string, force: boolean) => Promise<BatchStatus>,
): CommandType {
  return command(name, description)
    .argument('<job>')
    .option('--force', 'do not wait for the run that has it: it hangs, or its worker is gone', false)
    .action(async (jobId: string, options: Shared & { force: boolean }) => {
      await withBatches(options, async ({ batches }) => {
        const status = await act(batches, jobId, options.force)
        print(`${jobId} is ${status}\n`, options.json === true ? { jobId, status } : undefined)
      })
    })
}

function resumeCommand(): CommandType {
  return command('resume', 'go on where it stands, after a pause or a failure')
    .argument('<job>')
    .action(async (jobId: string, options: Shared) => {
      await withBatches(options, async ({ batches }) => {
        const status = await batches.resume(jobId)
        print(`${jobId} is ${status}\n`, options.json === true ? { jobId, status } : undefined)
      })
    })
}

function retryCommand(): CommandType {
  return command('retry-failures', 'try the rows again that a job set aside, each by itself')
    .argument('<job>')
    .action(async (jobId: string, options: Shared) => {
      await withBatches(options, async ({ batches }) => {
        const rows = await batches.retryFailures(jobId)
        print(`${rows} rows are tried again\n`, options.json === true ? { jobId, rows } : undefined)
      })
    })
}

const ended: readonly BatchStatus[] = ['completed', 'failed', 'cancelled', 'paused']

function watchCommand(): CommandType {
  return command('watch', 'follow a job to its end or its pause; exit code 1 unless it completed')
    .argument('<job>')
    .action(async (jobId: string, options: Shared) => {
      await withBatches(options, async ({ batches, signal }) => {
        let view = await look(batches, jobId)
        const bar = new BatchBar(view)
        for (; !ended.includes(view.status) && !signal.aborted; view = await look(batches, jobId)) {
          bar.update(view)
          await pause(500, signal)
        }
        bar.update(view)
        bar.stop()
        print(describeJobs([view], Date.now()), options.json === true ? view : undefined)
        if (view.status !== 'completed') process.exitCode = 1
      })
    })
}

function verifyCommand(): CommandType {
  return command(
    'verify',
    'prove from the data that each row was processed exactly once; exit code 1 if it does not',
  )
    .argument('<job>')
    .action(async (jobId: string, options: Shared) => {
      await withBatches(options, async ({ batches, signal }) => {
        const verification = await batches.verify(jobId, signal)
        print(describeVerification(verification), options.json === true ? numbers(verification) : undefined)
        if (!verification.proved) process.exitCode = 1
      })
    })
}

async function look(batches: Batches, jobId: string): Promise<JobView> {
  const job = await batches.get(jobId)
  if (!job) throw unknownBatchJob(jobId)
  return viewOf(job, await batches.progress(jobId))
}

function viewOf(
  job: NonNullable<Awaited<ReturnType<Batches['get']>>>,
  progress: Awaited<ReturnType<Batches['progress']>>,
): JobView {
  const { rowsExpected, ...rest } = job
  const { rows, failed, chunks, ranges, ...pace } = progress
  const total = rowsExpected === null ? null : Number(rowsExpected)
  return {
    ...rest,
    ...pace,
    rowsExpected: total,
    rows: Number(rows),
    failed: Number(failed),
    chunks: Number(chunks),
    ranges: ranges.map((r) => ({
      range: r.range,
      rows: Number(r.rows),
      failed: Number(r.failed),
      chunks: Number(r.chunks),
      last: r.last,
    })),
  }
}

/** JSON has no bigint; these are counts. */
function numbers(value: object): unknown {
  return JSON.parse(JSON.stringify(value, (_key, v: unknown) => (typeof v === 'bigint' ? Number(v) : v)))
}
