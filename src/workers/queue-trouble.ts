import type { Logger } from 'pino'
import type { RedisUrls } from '../jobs/sinks/redis-urls.ts'

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
