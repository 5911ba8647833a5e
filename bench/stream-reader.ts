import { Redis } from 'ioredis'
import { type Deferred, deferred } from '../src/db/deferred.ts'

/** Sees the events of a stream as they come, on a connection that blocks for the next. */
export class StreamReader {
  readonly #redis: Redis
  readonly #stream: string
  readonly #awaited = new Map<string, Deferred<number>>()
  readonly #reading: Promise<void>
  #closing = false

  constructor(url: string, stream: string) {
    this.#redis = new Redis(url)
    this.#stream = stream
    this.#reading = this.#read()
    this.#reading.catch((error: unknown) => {
      for (const seen of this.#awaited.values()) seen.reject(error as Error)
    })
  }

  /** When the event of this id is there, by performance.now(); asked before it can come. */
  seen(eventId: string): Promise<number> {
    const seen = deferred<number>()
    this.#awaited.set(eventId, seen)
    return seen.promise
  }

  async close(): Promise<void> {
    this.#closing = true
    this.#redis.disconnect()
    await this.#reading
  }

  async #read(): Promise<void> {
    let last = '0-0'
    while (!this.#closing) {
      const read = await this.#next(last)
      const now = performance.now()
      for (const [entryId, [, event = '{}']] of read) {
        last = entryId
        const { id } = JSON.parse(event) as { id: string }
        this.#awaited.get(id)?.resolve(now)
        this.#awaited.delete(id)
      }
    }
  }

  async #next(last: string): Promise<[string, string[]][]> {
    try {
      const reply = await this.#redis.xread('COUNT', 1_000, 'BLOCK', 0, 'STREAMS', this.#stream, last)
      return reply?.[0]?.[1] ?? []
    } catch (error) {
      if (this.#closing) return []
      throw error
    }
  }
}
