import { type JobsOptions, Queue } from 'bullmq'
import { type Cluster, Redis } from 'ioredis'
import type { CloudEvent } from '../../db/cloud-event.ts'
import { InvalidConfigError, RejectedEventError, SinkUnavailableError } from '../../db/errors.ts'
import { messageOf } from '../../db/message-of.ts'
import type { OutboxEvent } from '../../db/outbox-event.ts'
import { within } from '../../db/within.ts'
import { type BullmqOptions, problemsOf } from './bullmq-options.ts'
import { policyOf } from './define-sink.ts'
import { publishByKey, waitsBehind } from './publish-by-key.ts'
import { openCluster } from './redis-cluster.ts'
import type { RedisUrls } from './redis-urls.ts'
import { messageIdOf, type OpenSink, type Page, type Rejection, type Sink } from './sink.ts'

export type { BullmqOptions } from './bullmq-options.ts'

const hourMs = 60 * 60 * 1000

/**
 * Adds a job for each event to a queue of BullMQ. Its id is the message's, so a page that comes again adds nothing that is
 * still there: waiting, running, or kept after its end.
 *
 * addBulk sends the page's jobs in one pipeline, which is not atomic: Redis goes on behind a job that it refused, and
 * BullMQ throws the first refusal without telling what else was refused. Then the jobs go one by one; those that are there
 * already are not added again, and the answers tell which one is the trouble.
 */
export function bullmq(options: BullmqOptions): Sink {
  const { keepCompletedMs = hourMs, keepFailedMs = 7 * 24 * hourMs } = options
  const problems = problemsOf({ ...options, keepCompletedMs, keepFailedMs })
  if (problems.length > 0) throw new InvalidConfigError(problems.map((problem) => `bullmq: ${problem}`))
  return {
    guarantee: `one job per event, not added again within ${keepCompletedMs} ms after it completed or ${keepFailedMs} ms after it failed; added in order per key; how often and in which order jobs run is the worker's matter (at least once, in order only one at a time)`,
    ...(options.maxEventBytes === undefined ? {} : { maxEventBytes: options.maxEventBytes }),
    policy: policyOf(options),
    open: async ({ worstRetryMs }) => {
      const short = Object.entries({ keepCompletedMs, keepFailedMs }).filter(([, ms]) => ms < worstRetryMs)
      if (short.length > 0) {
        throw new InvalidConfigError(
          short.map(
            ([name, ms]) =>
              `bullmq: ${name} is ${ms}, but a page may come again after ${worstRetryMs} ms, and its jobs must be known then`,
          ),
        )
      }
      return openQueue(options, {
        ...options.jobOptions,
        removeOnComplete: { age: Math.ceil(keepCompletedMs / 1000) },
        removeOnFail: { age: Math.ceil(keepFailedMs / 1000) },
      })
    },
  }
}

/** How long Redis has for a page; with that its connection counts as dead. */
const answerMs = 10_000

/** Jobs on their way at once where they go one by one; those of one key never are. */
const concurrency = 16

function openQueue(options: BullmqOptions, jobOptions: JobsOptions): OpenSink {
  const { url, queue: name, prefix, jobName = ({ type }) => type } = options
  const redis = connect(url)
  const queue = new Queue(name, {
    connection: redis,
    ...(prefix === undefined ? {} : { prefix }),
    // Without these BullMQ talks to Redis at once, and a queue whose first try failed stays broken.
    skipWaitingForReady: true,
    skipVersionCheck: true,
    // The queue's settings are its owner's.
    skipMetasUpdate: true,
  })
  // BullMQ hands on the client's errors; every command reports its own as well.
  queue.on('error', () => undefined)

  return {
    publish: async (page) => {
      const { jobs, rejected } = jobsOf(page, jobName, jobOptions)
      try {
        await within(answerMs, 'adding a page of jobs', queue.addBulk([...jobs.values()]))
        return { rejected }
      } catch (error) {
        if (!isReply(error)) throw unavailable(page, redis, error)
      }
      const published = await publishByKey([...jobs.keys()], concurrency, async (event) => {
        const job = jobs.get(event)
        try {
          if (job) await within(answerMs, 'adding a job', queue.add(job.name, job.data, job.opts))
          return undefined
        } catch (error) {
          if (!isAboutOneJob(error)) throw unavailable(page, redis, error)
          return new RejectedEventError(
            `Redis refused the job of event ${event.eventId}: ${messageOf(error)}`,
          )
        }
      })
      return { ...published, rejected: [...rejected, ...published.rejected] }
    },
    close: async () => {
      redis.disconnect()
      await queue.close()
    },
  }
}

/** Fails fast, so that the relay's own back-off decides when to try again. */
function connect(url: RedisUrls): Redis | Cluster {
  const perServer = { maxRetriesPerRequest: 0, connectTimeout: 5_000 }
  if (typeof url === 'string') return new Redis(url, { ...perServer, lazyConnect: true })
  return openCluster(url, { lazyConnect: true }, perServer)
}

type Job = { name: string; data: CloudEvent; opts: JobsOptions }

/** The jobs of a page, and the events for which jobName found no name, with the later ones of their keys. */
function jobsOf(
  page: Page,
  jobName: (event: CloudEvent) => string,
  options: JobsOptions,
): { jobs: Map<OutboxEvent, Job>; rejected: Rejection[] } {
  const jobs = new Map<OutboxEvent, Job>()
  const rejected: Rejection[] = []
  const closed = new Set<string>()
  for (const event of page.events) {
    const key = event.partitionkey
    if (key !== null && closed.has(key)) {
      rejected.push({ event, reason: waitsBehind })
      continue
    }
    const data = event.attributes
    const name = nameOf(data, jobName)
    if (name !== undefined) {
      jobs.set(event, { name, data, opts: { ...options, jobId: messageIdOf(page, event) } })
      continue
    }
    if (key !== null) closed.add(key)
    // What a function of the user's throws may quote the payload.
    rejected.push({ event, reason: `jobName found no name for event ${event.eventId}` })
  }
  return { jobs, rejected }
}

function nameOf(event: CloudEvent, jobName: (event: CloudEvent) => string): string | undefined {
  try {
    const name: unknown = jobName(event)
    return typeof name === 'string' && name !== '' ? name : undefined
  } catch {
    return undefined
  }
}

function isReply(error: unknown): boolean {
  return error instanceof Error && error.name === 'ReplyError'
}

/** All that Redis can have against one job alone is that something else stands at its key. */
function isAboutOneJob(error: unknown): boolean {
  return isReply(error) && messageOf(error).includes('WRONGTYPE')
}

/** Without a cause: ioredis keeps a command's arguments with its error, and they are the payload. */
function unavailable(page: Page, redis: Redis | Cluster, error: unknown): SinkUnavailableError {
  if ((error as { code?: unknown } | null)?.code === 'ETIMEDOUT') redis.disconnect(true)
  return new SinkUnavailableError(`Redis did not take the jobs of ${page.sink}: ${messageOf(error)}`)
}
