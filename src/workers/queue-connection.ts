import type { ConnectionOptions } from 'bullmq'
import { hostsOf, readDatabaseUrl } from '../db/connection-url.ts'
import { InvalidConfigError } from '../db/errors.ts'
import { openCluster } from '../jobs/sinks/redis-cluster.ts'
import type { RedisUrls } from '../jobs/sinks/redis-urls.ts'

/** What BullMQ connects to Redis by. To one server it connects itself; a connection to a cluster it has to be given. */
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
    const cluster = openCluster(this.#redis, {}, { maxRetriesPerRequest: null })
    return { options: cluster, close: () => cluster.disconnect() }
  }

  close(): void {
    this.#shared?.close()
    this.#shared = undefined
  }
}

/** `close`: ends what BullMQ leaves open. */
export type Lent = { options: ConnectionOptions; close: () => void }

/** For node-postgres, which BullMQ uses. Without the URL's `options`, in whose place BullMQ puts the schema. */
export function onDatabase(postgres: string) {
  const { url, ...tls } = readDatabaseUrl(postgres)
  if (hostsOf(url).length > 1)
    throw new InvalidConfigError([
      'databases.primary: with several hosts the queues need Redis; set `redis` or REDIS_URL',
    ])
  const plain = new URL(url)
  plain.searchParams.delete('options')
  return { connectionString: plain.href, ...tls }
}
