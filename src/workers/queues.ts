import { once } from 'node:events'
import {
  type ConnectionOptions,
  createPostgresBackend,
  type IQueueBackend,
  type Job,
  type JobProgress,
  Queue,
  runMigrations,
  Worker,
} from 'bullmq'
import { Client } from 'pg'
import type { Logger } from 'pino'
import { within } from '../db/within.ts'
import type { RedisUrls } from '../jobs/sinks/redis-urls.ts'
import { type AnyWorker, inTime, leave, type Work } from './leave-queue.ts'
import { onDatabase, QueueConnection } from './queue-connection.ts'
import { QueueTrouble } from './queue-trouble.ts'

/**
 * The queues are BullMQ's: on Redis, or on PostgreSQL by BullMQ's own backend where no Redis is configured. They
 * hold nothing that is not in our tables as well: jobs are removed when they end, and what is unfinished in a table
 * is added again under the same job id, which is a no-op while it is there.
 */
export type QueueSettings = {
  /** redis://…, or nodes of a cluster; absent: PostgreSQL */
  redis: RedisUrls | undefined
  /** the primary database */
  postgres: string
  installation: string
  lockMs: number
  log: Logger
}

/** Over all workers; without one no limit. */
export type QueueLimits = {
  globalConcurrency?: number | undefined
  rateLimit?: { max: number; durationMs: number } | undefined
}

/** How long the queues may take to answer; the tables know what was to be queued. */
const answerMs = 5_000

/** How long the next job of a schedule may be due before the schedule counts as one that stopped. */
const standstillMs = 10_000

/** `priority`: 0, the default, comes first, then 1, and so on. */
export type QueuedJob = { name: string; id: string; data: Record<string, string>; priority?: number }

export type Processor = (
  job: { name: string; data: Record<string, string> },
  signal: AbortSignal,
  /** for whoever looks at the queue; what counts is in the tables */
  showProgress: (progress: object) => void,
) => Promise<void>

/** The schema of BullMQ's PostgreSQL backend. */
const schema = 'holdfast_bullmq'

/** Creates or upgrades BullMQ's own tables. Safe when several processes do it at once. */
export async function migrateQueues(postgres: string): Promise<void> {
  const client = new Client(onDatabase(postgres))
  await client.connect()
  try {
    await runMigrations(client, schema)
  } finally {
    await client.end()
  }
}

// The two backends give Queue and Worker different types; this is what both have and we use.
type AnyQueue = Pick<
  Queue,
  | 'add'
  | 'addBulk'
  | 'close'
  | 'upsertJobScheduler'
  | 'getJobScheduler'
  | 'removeJobScheduler'
  | 'setGlobalConcurrency'
  | 'removeGlobalConcurrency'
  | 'setGlobalRateLimit'
  | 'removeGlobalRateLimit'
  | 'obliterate'
  | 'disconnect'
>
function optionsOf({ id, priority }: QueuedJob) {
  const options = { jobId: id, removeOnComplete: true, removeOnFail: true }
  return priority === undefined || priority === 0 ? options : { ...options, priority }
}

export class Queues {
  readonly #settings: QueueSettings
  readonly #redis: QueueConnection | undefined
  readonly #trouble: QueueTrouble
  readonly #queues = new Map<string, AnyQueue>()
  readonly #works: Work[] = []
  #closing = false
  #closed = false

  constructor(settings: QueueSettings) {
    const { redis, log } = settings
    this.#settings = settings
    this.#redis = redis === undefined ? undefined : new QueueConnection(redis)
    this.#trouble = new QueueTrouble(log, redis)
  }

  /** Adds a job unless one with its id is queued or running. It leaves no trace when it ends. */
  async add(queue: string, job: QueuedJob): Promise<void> {
    await within(
      answerMs,
      `adding to the queue ${queue}`,
      this.#queue(queue).add(job.name, job.data, optionsOf(job)),
    )
  }

  async addAll(queue: string, jobs: readonly QueuedJob[]): Promise<void> {
    if (jobs.length === 0) return
    const added = this.#queue(queue).addBulk(
      jobs.map((job) => ({ name: job.name, data: job.data, opts: optionsOf(job) })),
    )
    await within(answerMs, `adding to the queue ${queue}`, added)
  }

  /** Asserts a schedule; asserting it again changes nothing. */
  async schedule(queue: string, job: QueuedJob, everyMs: number): Promise<void> {
    const opts = { removeOnComplete: true, removeOnFail: true }
    const scheduled = this.#queue(queue).upsertJobScheduler(
      job.id,
      { every: everyMs },
      { name: job.name, data: job.data, opts },
    )
    await within(answerMs, `scheduling in the queue ${queue}`, scheduled)
  }

  /**
   * Asserts a schedule by a cron expression; returns whether it was not there, was another, or stood still. What is
   * there stays untouched: BullMQ would take a job that waits already out of the queue, and count from now.
   */
  async scheduleCron(
    queue: string,
    job: QueuedJob,
    { cron, tz }: { cron: string; tz: string },
  ): Promise<boolean> {
    const here = this.#queue(queue)
    const known = await within(
      answerMs,
      `reading the schedules of the queue ${queue}`,
      here.getJobScheduler(job.id),
    )
    const same = known?.pattern === cron && known.tz === tz
    if (same && known.next !== undefined && known.next > Date.now() - standstillMs) return false
    const opts = { removeOnComplete: true, removeOnFail: true }
    const scheduled = here.upsertJobScheduler(
      job.id,
      { pattern: cron, tz },
      { name: job.name, data: job.data, opts },
    )
    await within(answerMs, `scheduling in the queue ${queue}`, scheduled)
    return true
  }

  async unschedule(queue: string, id: string): Promise<void> {
    await within(
      answerMs,
      `removing a schedule from the queue ${queue}`,
      this.#queue(queue).removeJobScheduler(id),
    )
  }

  /** Sets what holds for all workers of a queue, and takes away what no longer does. */
  async limit(queue: string, { globalConcurrency, rateLimit }: QueueLimits): Promise<void> {
    const here = this.#queue(queue)
    const set = Promise.all([
      globalConcurrency === undefined
        ? here.removeGlobalConcurrency()
        : here.setGlobalConcurrency(globalConcurrency),
      rateLimit === undefined
        ? here.removeGlobalRateLimit()
        : here.setGlobalRateLimit(rateLimit.max, rateLimit.durationMs),
    ])
    await within(answerMs, `limiting the queue ${queue}`, set)
  }

  /** Starts to work on a queue. The signal aborts when the job's lock is lost or the worker stops. */
  async work(queue: string, concurrency: number, process: Processor): Promise<void> {
    const { lockMs, log } = this.#settings
    const options = {
      concurrency,
      lockDuration: lockMs,
      // A killed worker's job keeps its place in a limited queue until this has looked twice after the lock ended.
      stalledInterval: Math.ceil(lockMs / 3),
      // A worker that was killed is not the job's fault; what it must not repeat is fenced in PostgreSQL.
      maxStalledCount: 2_147_483_647,
      // How long a blocking fetch waits before it looks again, in seconds.
      drainDelay: 1,
    }
    const running = new Set<Promise<void>>()
    const stopping = new AbortController()
    const run = (job: Job, _token?: string, signal?: AbortSignal): Promise<void> => {
      // The tables have it; whoever is left has it queued again.
      if (work.left) return Promise.reject(new Error('the worker has left'))
      const processed = process(
        { name: job.name, data: job.data as Record<string, string> },
        // A job that is there when the worker stops is cancelled; one that comes after that finds itself stopped.
        stopping.signal.aborted || !signal ? stopping.signal : signal,
        (progress) => {
          job
            .updateProgress(progress)
            .catch((err: unknown) => log.debug({ err, queue }, 'progress not shown'))
        },
      ).finally(() => running.delete(processed))
      running.add(processed)
      return processed
    }
    this.#refuse(this.#closing)
    const lent = this.#redis?.forWorker()
    const worker: AnyWorker =
      lent === undefined
        ? this.#observe(new Worker(queue, run, { ...options, ...this.#onPostgres() }, createPostgresBackend))
        : this.#observe(new Worker(queue, run, { ...options, ...this.#onRedis(lent.options, queue) }))
    const work: Work = {
      worker,
      running,
      stopping,
      connected: false,
      left: false,
      close: () => lent?.close(),
    }
    this.#works.push(work)
    const stopped = once(stopping.signal, 'abort')
    await Promise.race([worker.waitUntilReady(), stopped])
    stopping.signal.throwIfAborted()
    work.connected = true
  }

  /**
   * Stops taking jobs, tells the running ones to stop, and waits for them. Not for a queue that cannot be reached: what it
   * was to hear it learns from the tables.
   */
  async drain(): Promise<void> {
    await Promise.all(this.#works.splice(0).map(leave))
  }

  async close(): Promise<void> {
    this.#closing = true
    await this.drain()
    this.#closed = true
    const queues = [...this.#queues.values()]
    this.#queues.clear()
    // A queue that cannot be reached cannot say goodbye; what is in it does not depend on that.
    await Promise.all(
      queues.map(async (queue) => (await inTime(queue.close())) || inTime(queue.disconnect())),
    )
    this.#redis?.close()
  }

  /** Removes queues with all that is in them; the tables know what was unfinished. */
  async obliterate(names: readonly string[]): Promise<void> {
    for (const name of names) await this.#queue(name).obliterate({ force: true })
  }

  #queue(name: string): AnyQueue {
    const known = this.#queues.get(name)
    if (known) return known
    this.#refuse(this.#closed)
    const onError = (err: Error) => this.#trouble.tell(name, err)
    let queue: AnyQueue
    if (this.#redis === undefined) {
      const onPostgres = new Queue(name, this.#onPostgres(), createPostgresBackend)
      onPostgres.on('error', onError)
      queue = onPostgres
    } else {
      const onRedis = new Queue(name, this.#onRedis(this.#redis.forQueues, name))
      onRedis.on('error', onError)
      queue = onRedis
    }
    this.#queues.set(name, queue)
    return queue
  }

  #observe<B extends IQueueBackend, C>(worker: Worker<unknown, void, string, B, JobProgress, C>): AnyWorker {
    const { log } = this.#settings
    worker.on('error', (err) => this.#trouble.tell(worker.name, err))
    worker.on('failed', (job, err) => log.error({ err, queue: worker.name, jobId: job?.id }, 'job failed'))
    worker.on('lockRenewalFailed', (ids) => {
      for (const id of ids) worker.cancelJob(id, 'its lock was lost')
    })
    return worker
  }

  #refuse(closed: boolean): void {
    if (closed) throw new Error('the queues were closed')
  }

  #onPostgres() {
    return { connection: { ...onDatabase(this.#settings.postgres), schema, max: 4 } }
  }

  /** The hash tag keeps a queue's keys on one node of a cluster, and the queues on different ones. */
  #onRedis(connection: ConnectionOptions, queue: string) {
    return { connection, prefix: `{holdfast-${this.#settings.installation}-${queue}}` }
  }
}
