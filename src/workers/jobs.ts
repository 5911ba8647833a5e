import { type DueJob, findJob, type Job, type JobFilter, type JobStatus, listJobs } from '../db/jobs.ts'
import { definitionOf, type Enqueued, type EnqueueOptions, enqueueJob } from '../jobs/enqueue-job.ts'
import { cancelJob, type JobWaitOptions, retryJob, waitForJob } from '../jobs/job-control.ts'
import { queueOf } from '../jobs/job-queue.ts'
import type { Context } from './context.ts'
import { jobQueueJob } from './job-service.ts'
import { QueueHint } from './queue-hint.ts'

/** What the library and the command line do with users' jobs. */
export class Jobs {
  readonly #ctx: Context
  readonly #hint: QueueHint

  constructor(ctx: Context) {
    this.#ctx = ctx
    this.#hint = new QueueHint(ctx.queues, ctx.log)
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

  async #queue(job: DueJob): Promise<void> {
    const definition = this.#ctx.config.jobs.get(job.name)
    // One that this config lacks is for another's workers, which know its queue.
    if (definition) await this.#hint.tell(queueOf(definition), jobQueueJob(job))
  }
}
