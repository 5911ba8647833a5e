import type { ConnectionOptions } from 'bullmq'
import { Cluster, type ClusterOptions } from 'ioredis'
import type { Logger } from 'pino'
import { forgiveAsking } from '../jobs/sinks/redis-connection.ts'
import { accessOf, type RedisUrls } from '../jobs/sinks/redis-urls.ts'

/** What BullMQ connects by. To one server it connects itself; a connection to a cluster it has to be given. */
export class QueueConnection {
  readonly #redis: RedisUrls
  #shared: Lent | undefined

  constructor(redis: RedisUrls) {
    this.#redis = redis
  }

  /** For a queue. All of them share it, and none ends it. */
  get forQueues(): ConnectionOptions {
    this.#shared ??= this.forWorker()
    return this.#shared.options
  }

  /** For a worker: of its own, since a worker that is left behind is disconnected with all that it was given. */
  forWorker(): Lent {
    if (typeof this.#redis === 'string')
      return { options: { url: this.#redis, maxRetriesPerRequest: null }, close: () => undefined }
    const cluster = connect(this.#redis)
    return { options: cluster, close: () => cluster.disconnect() }
  }

  close(): void {
    this.#shared?.close()
    this.#shared = undefined
  }
}

/** `close`: ends what BullMQ leaves open. */
export type Lent = { options: ConnectionOptions; close: () => void }

function connect(urls: readonly string[]): Cluster {
  return forgiving(
    new Cluster([...urls], {
      ...perCluster,
      redisOptions: { maxRetriesPerRequest: null, ...accessOf(urls) },
    }),
  )
}

/** With its copies, which BullMQ makes to wait on. */
function forgiving(cluster: Cluster): Cluster {
  // Without a listener ioredis writes to the console; the queues report the same.
  cluster.on('error', () => undefined)
  cluster.on('+node', forgiveAsking)
  const duplicate = cluster.duplicate.bind(cluster)
  cluster.duplicate = (...args) => forgiving(duplicate(...args))
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
