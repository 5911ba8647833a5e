import { type DueJob, findJob, type Job, type JobFilter, type JobStatus, listJobs } from '../db/jobs.ts'
import { within } from '../db/within.ts'
import { definitionOf, type Enqueued, type EnqueueOptions, enqueueJob } from '../jobs/enqueue-job.ts'
import { cancelJob, type JobWaitOptions, retryJob, waitForJob } from '../jobs/job-control.ts'
import { queueOf } from '../jobs/job-queue.ts'
import type { Context } from './context.ts'
import { jobQueueJob } from './job-service.ts'

/** How long a caller waits for the queue, when the row is there already. */
const patienceMs = 500

/** What the library and the command line do with users' jobs. */
export class Jobs {
  readonly #ctx: Context
  #silent = false

  constructor(ctx: Context) {
    this.#ctx = ctx
  }

  async enqueue(
    job: string | { readonly name: string },
    input: unknown,
    options: EnqueueOptions = {},
  ): Promise<Enqueued> {
    const definition = definitionOf(this.#ctx.config.jobs, job)
    const enqueued = await enqueueJob(this.#ctx, definition, input, options)
    // In the caller's transaction it is not there yet, and with a delay not due: the workers find it in time.
    if (!options.tx && !options.delayMs)
      await this.#queue({ id: enqueued.jobId, name: definition.name, priority: options.priority ?? 0 })
    return enqueued
  }

  get(jobId: string): Promise<Job | undefined> {
    return findJob(this.#ctx.databases.primary.sql, jobId)
  }

  list(filter?: JobFilter): Promise<Job[]> {
    return listJobs(this.#ctx.databases.primary.sql, filter)
  }

  async retry(jobId: string): Promise<JobStatus> {
    const status = await retryJob(this.#ctx, jobId)
    const job = await this.get(jobId)
    if (job) await this.#queue(job)
    return status
  }

  cancel(jobId: string): Promise<JobStatus> {
    return cancelJob(this.#ctx, jobId)
  }

  /** What the result is like is the definition's word. */
  async wait<Result>(job: string | Enqueued<Result>, options?: JobWaitOptions): Promise<Job<Result | null>> {
    const jobId = typeof job === 'string' ? job : job.jobId
    return (await waitForJob(this.#ctx, jobId, options)) as Job<Result | null>
  }

  /**
   * The workers assert from the rows what is to be queued, so a queue that does not answer keeps nobody for long; and while
   * an answer is outstanding that took too long, nothing more is sent to where it would pile up.
   */
  async #queue(job: DueJob): Promise<void> {
    const { config, queues, log } = this.#ctx
    const definition = config.jobs.get(job.name)
    // One that this config lacks is for another's workers, which know its queue.
    if (!definition || this.#silent) return
    const added = queues.add(queueOf(definition), jobQueueJob(job))
    try {
      await within(patienceMs, `queueing ${job.name}`, added)
    } catch (error) {
      log.warn({ err: error, jobId: job.id }, 'recorded, but not queued yet; a worker will')
      this.#silent = true
      const ended = () => void (this.#silent = false)
      added.then(ended, ended)
    }
  }
}
