import type { BackoffOptions } from 'bullmq'
import type { CloudEvent } from '../../db/cloud-event.ts'
import { problemsOfUrls, type RedisUrls } from './redis-urls.ts'
import type { SinkPolicy } from './sink.ts'

export type BullmqOptions = SinkPolicy & {
  /** redis:// or rediss://, of one server; a list: of nodes of a cluster, through which the others are found */
  url: RedisUrls
  /** the queue's name; best a queue that nothing else adds to */
  queue: string
  /** BullMQ's prefix of its keys; default `bull`. On a cluster with a hash tag, `{bull}`: a job's keys lie on one node */
  prefix?: string
  /** the name of an event's job; default the event's type */
  jobName?: (this: void, event: CloudEvent) => string
  /** how long a completed job is kept, and its event not added again; default 1 hour */
  keepCompletedMs?: number
  /** the same for a failed one; default 7 days */
  keepFailedMs?: number
  /** the largest event, as CloudEvent in JSON; below Redis' proto-max-bulk-len (512 MB unless it was changed) */
  maxEventBytes?: number
  jobOptions?: {
    /** how often the worker tries a job; default 1 */
    attempts?: number
    /** the pause between tries: milliseconds, or a strategy of BullMQ */
    backoff?: number | BackoffOptions
    /** 1 (first) to 2097151 (last) */
    priority?: number
  }
}

/** PRIORITY_LIMIT of BullMQ */
const maxPriority = 2_097_151

const known = new Set(['attempts', 'backoff', 'priority'])

/** What is wrong with the options; none of it repeats the URL, which may hold a password. */
export function problemsOf(
  options: BullmqOptions & { keepCompletedMs: number; keepFailedMs: number },
): string[] {
  const { url, queue, prefix, jobName, maxEventBytes, jobOptions = {} } = options
  const { attempts = 1, backoff = 0, priority = 0 } = jobOptions
  const { delay = 0, jitter = 0 } = typeof backoff === 'number' ? { delay: backoff } : backoff
  const unknown = Object.keys(jobOptions).filter((name) => !known.has(name))
  return [
    ...problemsOfUrls(url).map((problem) => `url: ${problem}`),
    ...(isName(queue) ? [] : ['queue is a name without a colon']),
    ...(prefix === undefined || (typeof prefix === 'string' && prefix !== '') ? [] : ['prefix is a text']),
    ...(typeof url === 'string' || /\{[^}]+\}/.test(prefix ?? '')
      ? []
      : ['prefix needs a hash tag on a cluster, as in {bull}']),
    ...(jobName === undefined || typeof jobName === 'function' ? [] : ['jobName is a function']),
    ...(isCount(options.keepCompletedMs) ? [] : ['keepCompletedMs is a whole number of milliseconds']),
    ...(isCount(options.keepFailedMs) ? [] : ['keepFailedMs is a whole number of milliseconds']),
    ...(maxEventBytes === undefined || isCount(maxEventBytes)
      ? []
      : ['maxEventBytes is a whole number of bytes']),
    ...(isCount(attempts) ? [] : ['jobOptions.attempts is a whole number']),
    ...(delay >= 0 && jitter >= 0 && jitter <= 1
      ? []
      : ['jobOptions.backoff has a delay, and a jitter up to 1']),
    ...(Number.isSafeInteger(priority) && priority >= 0 && priority <= maxPriority
      ? []
      : ['jobOptions.priority is a whole number up to 2097151']),
    ...unknown.map((name) => `jobOptions.${name} is not among attempts, backoff and priority`),
  ]
}

function isName(value: unknown): boolean {
  return typeof value === 'string' && value !== '' && !value.includes(':')
}

function isCount(value: unknown): boolean {
  return Number.isSafeInteger(value) && (value as number) > 0
}
