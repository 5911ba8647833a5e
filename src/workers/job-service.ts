import { type DueJob, listDueJobs } from '../db/jobs.ts'
import { queueOf } from '../jobs/job-queue.ts'
import { runJob } from '../jobs/run-job.ts'
import { RunningJobs } from '../jobs/running-jobs.ts'
import type { Context } from './context.ts'
import type { QueuedJob } from './queues.ts'

/**
 * Users' jobs in a worker. The queue holds those that are due, up to a number: the rows are asserted in it again and again,
 * so what the queue forgets is back with the next look, and what is not due yet is not in it. Retries and delays are kept
 * in the rows for the same reason.
 */
const assertedAtOnce = 200

export class JobService {
  readonly #ctx: Context
  readonly #running = new RunningJobs()
  readonly #stopping: AbortSignal

  constructor(ctx: Context, stopping: AbortSignal) {
    this.#ctx = ctx
    this.#stopping = stopping
  }

  /** Queues what is due of the definitions that may run here, and stops the runs that were revoked. */
  async assert(): Promise<void> {
    const { databases, queues, config, lease } = this.#ctx
    if (config.jobs.size === 0) return
    await this.#running.look(databases.primary.sql, lease.id)
    const jobs = [...config.jobs.values()].filter((job) => this.#running.hasRoom(job))
    // By itself each: what waits in a queue with a limit takes no room from the others.
    for (const queue of config.queues.keys()) {
      const names = jobs.filter((job) => queueOf(job) === queue).map(({ name }) => name)
      if (names.length > 0)
        await queues.addAll(queue, (await this.#due(names, assertedAtOnce)).map(jobQueueJob))
    }
  }

  async run(data: Record<string, string>, lockLost: AbortSignal): Promise<void> {
    const { jobId = '', job = '' } = data
    const grace = this.#grace(lockLost)
    const runner = { ctx: this.#ctx, definitions: this.#ctx.config.jobs, running: this.#running }
    try {
      await runJob(runner, { id: jobId, name: job }, grace.signal)
    } finally {
      grace.end()
    }
    // Those that found no room here were given back; the next one need not wait until the rows are looked at again.
    const definition = this.#ctx.config.jobs.get(job)
    if (definition?.concurrency !== undefined && !this.#stopping.aborted) {
      const [next] = await this.#due([job], 1)
      if (next) await this.#ctx.queues.add(queueOf(definition), jobQueueJob(next))
    }
  }

  #due(names: readonly string[], limit: number): Promise<DueJob[]> {
    return listDueJobs(this.#ctx.databases.primary.sql, names, this.#running.ids, limit, this.#ctx.lease.id)
  }

  /**
   * A lost lock aborts at once. A worker that stops lets its jobs end by themselves for half of the time that it has, and
   * has them hand back what they do in the other half.
   */
  #grace(signal: AbortSignal): { signal: AbortSignal; end: () => void } {
    const controller = new AbortController()
    let timer: NodeJS.Timeout | undefined
    const onAbort = () => {
      if (!this.#stopping.aborted) controller.abort(signal.reason)
      else
        timer ??= setTimeout(
          () => controller.abort(new Error('the worker stops')),
          this.#ctx.config.timing.drainMs / 2,
        )
    }
    if (signal.aborted) onAbort()
    signal.addEventListener('abort', onAbort)
    return {
      signal: controller.signal,
      end: () => {
        clearTimeout(timer)
        signal.removeEventListener('abort', onAbort)
      },
    }
  }
}

/** The queue job of a job. BullMQ takes no colon in a job id; ours has none. */
export function jobQueueJob({ id, name, priority }: DueJob): QueuedJob {
  return { name: 'run-job', id, data: { jobId: id, job: name }, priority }
}
