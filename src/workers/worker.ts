import { listUnfinishedBatchJobs } from '../db/batch-jobs.ts'
import { InvalidConfigError } from '../db/errors.ts'
import { sinceLastRun } from '../db/job-runs.ts'
import { recordSnapshot } from '../db/outbox-snapshots.ts'
import { cleanStaleTransactions, cleanUpJob } from '../jobs/clean-stale-transactions.ts'
import { compensate, dueCompensations } from '../jobs/compensate.ts'
import { expireIdempotencyKeys, expireKeysJob } from '../jobs/expire-idempotency-keys.ts'
import { watchJobs } from '../jobs/job-alerts.ts'
import { builtInQueues, defaultQueue, queueOf } from '../jobs/job-queue.ts'
import { watchOutbox } from '../jobs/outbox-alerts.ts'
import { recover } from '../jobs/recovery.ts'
import { type RunProgress, runBatch } from '../jobs/run-batch.ts'
import type { Context } from './context.ts'
import { JobService, jobQueueJob } from './job-service.ts'
import { Loop } from './loop.ts'
import { OutboxService } from './outbox-service.ts'
import type { Processor } from './queues.ts'
import { ScheduleService } from './schedule-service.ts'

/** `queues`: those that this process works on; default all. Recovery, and what asserts the queues, runs in every worker. */
export type WorkOn = { queues?: readonly string[] | undefined }

const hourMs = 60 * 60 * 1000
const overdueMs = 2 * hourMs
/** On the queue `cleanup`. */
const hourlyJobs = [cleanUpJob, expireKeysJob]

/**
 * The worker side of a process: recovery at boot and every minute, the queues, and the loop that asserts in them what
 * the tables say is unfinished.
 */
export class WorkerService {
  readonly #ctx: Context
  readonly #outbox: OutboxService
  readonly #schedules: ScheduleService
  readonly #jobs: JobService
  readonly #queues: ReadonlySet<string>
  readonly #running = new Set<string>()
  readonly #loops: Loop[] = []
  readonly #stopping = new AbortController()
  readonly #since = performance.now()
  #stopped: Promise<void> | undefined

  constructor(ctx: Context, { queues }: WorkOn = {}) {
    this.#ctx = ctx
    this.#queues = new Set(queues ?? queuesOf(ctx))
    this.#outbox = new OutboxService(ctx)
    this.#schedules = new ScheduleService(ctx, ({ jobId: id, of: { kind, name } }) =>
      kind === 'batch'
        ? ctx.queues.add('batch', batchQueueJob(id))
        : ctx.queues.add(queueOf(ctx.config.jobs.get(name) ?? {}), jobQueueJob({ id, name, priority: 0 })),
    )
    this.#jobs = new JobService(ctx, this.#stopping.signal)
  }

  /**
   * Throws InvalidConfigError where it is to work on a queue that there is none of, and an AbortError where it is
   * stopped meanwhile.
   */
  async start(): Promise<void> {
    const { config, log, lease } = this.#ctx
    this.#checkQueues()
    await lease.hold()
    await this.#outbox.start()
    await this.#schedules.start()
    await this.#recover()
    await this.#work('outbox', this.#outbox.concurrency, ({ data }, signal) => this.#publish(data, signal))
    await this.#work('batch', 2, ({ data }, signal, showProgress) =>
      this.#runBatch(data, signal, showProgress),
    )
    await this.#work('cleanup', 1, ({ name }, signal) => this.#cleanUp(name, signal))
    // Where no queue answers the start waits below; limits are set again each second.
    await this.#limitQueues('all').catch((err: unknown) =>
      log.warn({ err }, 'limits of the queues not set yet'),
    )
    for (const [queue, limits] of config.queues) {
      await this.#work(queue, limits.concurrency, ({ name, data }, signal) =>
        name === 'run-job' ? this.#jobs.run(data, signal) : this.#compensate(data, signal),
      )
    }
    if (this.#schedules.any) {
      await this.#work('schedules', 4, ({ data }, signal) => this.#tick(data, signal))
    }
    this.#loops.push(
      new Loop('recovery', config.timing.recoverEveryMs, () => this.#recover(), log),
      new Loop('limits of queues', config.timing.recoverEveryMs, () => this.#limitQueues('all'), log),
      new Loop('assert queues', config.timing.assertEveryMs, () => this.#assertQueues(), log),
    )
    await this.#assertQueues()
    this.#stopping.signal.throwIfAborted()
    for (const loop of this.#loops) loop.start()
    log.info(
      {
        worker: lease.id,
        queues: [...this.#queues],
        jobs: [...config.jobs.keys()],
        batches: [...config.batches.keys()],
        sinks: this.#outbox.sinks,
      },
      'worker started',
    )
  }

  #checkQueues(): void {
    const known = queuesOf(this.#ctx)
    const unknown = [...this.#queues].filter((name) => !known.includes(name))
    if (unknown.length > 0)
      throw new InvalidConfigError([`no queue ${unknown.join(', ')}; there are ${known.join(', ')}`])
  }

  async #work(queue: string, concurrency: number, process: Processor): Promise<void> {
    this.#stopping.signal.throwIfAborted()
    if (this.#queues.has(queue)) await this.#ctx.queues.work(queue, concurrency, process)
  }

  /**
   * Stops taking jobs, lets the running ones end where they can be resumed, and closes. Idempotent. Resolves to false
   * when the deadline passed first: what still runs is resumed elsewhere.
   */
  async stop(): Promise<boolean> {
    this.#stopped ??= this.#stop()
    let timer: NodeJS.Timeout | undefined
    const deadline = new Promise<false>((resolve) => {
      timer = setTimeout(() => resolve(false), this.#ctx.config.timing.drainMs)
    })
    try {
      return await Promise.race([this.#stopped.then(() => true as const), deadline])
    } finally {
      clearTimeout(timer)
    }
  }

  async #stop(): Promise<void> {
    this.#stopping.abort()
    await Promise.all(this.#loops.map((loop) => loop.stop()))
    await this.#ctx.queues.drain()
    await this.#outbox.stop()
  }

  async #recover(): Promise<void> {
    await this.#schedules.round()
    const report = await recover(this.#ctx, { signal: this.#stopping.signal })
    if (report.committed + report.rolledBack + report.failed > 0) this.#ctx.log.info(report, 'recovered')
    await this.#checkOverdue()
    await recordSnapshot(this.#ctx.databases.primary)
    await watchOutbox(this.#ctx)
    await watchJobs(this.#ctx)
  }

  /** Sets the limits of all queues that have some, or of all: an older worker may have set others until it stopped. */
  async #limitQueues(which: 'limited' | 'all'): Promise<void> {
    for (const [queue, limits] of this.#ctx.config.queues) {
      const limited = limits.globalConcurrency !== undefined || limits.rateLimit !== undefined
      if (limited || which === 'all') await this.#ctx.queues.limit(queue, limits)
    }
  }

  async #cleanUp(job: string, signal: AbortSignal): Promise<void> {
    if (job === expireKeysJob) await expireIdempotencyKeys(this.#ctx, this.#either(signal))
    else await cleanStaleTransactions(this.#ctx, this.#ctx.config.retention, this.#either(signal))
  }

  /** Reports exist of schedulers that stop; what counts is the last success that PostgreSQL knows of. */
  async #checkOverdue(): Promise<void> {
    for (const job of hourlyJobs) {
      const { ms, never } = await sinceLastRun(this.#ctx.databases.primary.sql, job)
      // Of an installation that had no worker until now it says nothing.
      if ((never ? Math.min(ms, performance.now() - this.#since) : ms) < overdueMs) continue
      const minutes = Math.round(ms / 60_000)
      this.#ctx.alerts.raise({
        kind: 'overdue',
        subject: job,
        message: `${job} ${never ? `has not succeeded in the ${minutes} minutes since the installation` : `last succeeded ${minutes} minutes ago`}, it is due every hour`,
      })
    }
  }

  /** Adds what the tables say is unfinished; what is in the queue already stays as it is. */
  async #assertQueues(): Promise<void> {
    const { queues, config, databases } = this.#ctx
    for (const job of hourlyJobs) await queues.schedule('cleanup', { name: job, id: job, data: {} }, hourMs)
    for (const job of this.#outbox.jobs()) await queues.add('outbox', job)
    for (const job of await listUnfinishedBatchJobs(databases.primary.sql)) {
      if (config.batches.has(job.batch)) await queues.add('batch', batchQueueJob(job.id))
    }
    await this.#limitQueues('limited')
    await this.#jobs.assert()
    for (const { attempt } of await dueCompensations(this.#ctx)) {
      await queues.add(defaultQueue, { name: 'compensate', id: `compensate-${attempt}`, data: { attempt } })
    }
    await this.#schedules.assertQueue()
  }

  async #tick(data: Record<string, string>, signal: AbortSignal): Promise<void> {
    await this.#schedules.tick(data.schedule ?? '', this.#either(signal))
  }

  async #compensate(data: Record<string, string>, signal: AbortSignal): Promise<void> {
    const { attempt = '' } = data
    await this.#once(`compensate ${attempt}`, async () => {
      await compensate(this.#ctx, attempt, this.#either(signal))
    })
  }

  async #publish(data: Record<string, string>, signal: AbortSignal): Promise<void> {
    const { sink = '', shard = '0' } = data
    await this.#once(`outbox ${sink} ${shard}`, () =>
      this.#outbox.publish(sink, Number(shard), this.#either(signal)),
    )
  }

  async #runBatch(
    data: Record<string, string>,
    signal: AbortSignal,
    onProgress: (progress: RunProgress) => void,
  ): Promise<void> {
    const { jobId = '' } = data
    await this.#once(`batch ${jobId}`, async () => {
      await runBatch(this.#ctx, this.#ctx.config.batches, jobId, this.#either(signal), { onProgress })
    })
  }

  /**
   * Within one process the same work runs once. When BullMQ delivers it a second time here (the lock was lost), the
   * first run's pages and chunks are of a live owner, namely ourselves, and must not be resolved under its feet.
   */
  async #once(key: string, run: () => Promise<void>): Promise<void> {
    if (this.#running.has(key)) return
    this.#running.add(key)
    try {
      await run()
    } finally {
      this.#running.delete(key)
    }
  }

  #either(signal: AbortSignal): AbortSignal {
    return AbortSignal.any([signal, this.#stopping.signal])
  }
}

function queuesOf({ config }: Context): string[] {
  return [...builtInQueues, ...config.queues.keys()]
}

/** The queue job of a batch job. BullMQ takes no colon in a job id; ours has none. */
export function batchQueueJob(jobId: string): { name: string; id: string; data: Record<string, string> } {
  return { name: 'run-batch', id: jobId, data: { jobId } }
}
