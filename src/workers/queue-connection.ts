import type { ConnectionOptions } from 'bullmq'
import { Cluster, type ClusterOptions } from 'ioredis'
import type { Logger } from 'pino'
import { accessOf, type RedisUrls } from '../jobs/sinks/redis-urls.ts'

/**
 * What BullMQ connects by: to one server it does so itself, once for each queue and twice for each worker; a cluster it has
 * to be given, and leaves open. Its workers wait on connections of their own.
 */
export class QueueConnection {
  readonly #redis: RedisUrls
  #cluster: Cluster | undefined

  constructor(redis: RedisUrls) {
    this.#redis = redis
  }

  get options(): ConnectionOptions {
    if (typeof this.#redis === 'string') return { url: this.#redis, maxRetriesPerRequest: null }
    this.#cluster ??= connect(this.#redis)
    return this.#cluster
  }

  close(): void {
    this.#cluster?.disconnect()
    this.#cluster = undefined
  }
}

function connect(urls: readonly string[]): Cluster {
  const cluster = new Cluster([...urls], {
    ...perCluster,
    redisOptions: { maxRetriesPerRequest: null, ...accessOf(urls) },
  })
  // Without a listener ioredis writes to the console; the queues report the same.
  cluster.on('error', () => undefined)
  return cluster
}

const perCluster = {
  slotsRefreshTimeout: 5_000,
  // Names are resolved by the connection itself, which checks a certificate against the name.
  dnsLookup: (name, done) => done(null, name),
} satisfies ClusterOptions

/** How often the same trouble is told. */
const silenceMs = 60_000

/**
 * Tells of trouble with the queues once a minute, as long as it stays the same: every queue and worker reports it, each
 * second. None of it is an error of a job.
 */
export class QueueTrouble {
  readonly #log: Logger
  readonly #server: string
  readonly #told = new Map<string, number>()

  constructor(log: Logger, server: RedisUrls | undefined) {
    this.#log = log
    this.#server = server === undefined ? 'the primary database' : hostsOf(server)
  }

  tell(queue: string, err: Error): void {
    const now = performance.now()
    const last = this.#told.get(err.message)
    const quiet = last !== undefined && now - last < silenceMs
    if (!quiet) this.#told.set(err.message, now)
    for (const [message, at] of this.#told) if (now - at > silenceMs) this.#told.delete(message)
    this.#log[quiet ? 'debug' : 'warn'](
      { err, queue, server: this.#server },
      'trouble with the queues; trying again, and nothing is lost',
    )
  }
}

/** Without user and password. */
function hostsOf(urls: RedisUrls): string {
  return [urls]
    .flat()
    .map((url) => new URL(url).host)
    .join(', ')
}
