import { Redis } from 'ioredis'
import { createDatabase } from '../src/db/create-database.ts'
import { appendEvents, type NewEvent } from '../src/db/outbox.ts'
import type { JobContext } from '../src/jobs/context.ts'
import { redisStream } from '../src/jobs/sinks/redis-stream.ts'
import { sinkContext } from '../src/jobs/sinks/sink-context.ts'
import { Relays } from '../test/support/relays.ts'
import { openBenchContext } from './context.ts'
import type { BenchServers } from './measure.ts'

export const pageSize = 1_000

/** The sink's name, and so the cursors'. */
export const sinkName = 'stream'

/** An outbox in a database of its own, and the relays of all its shards, which carry it to a stream of the same name. */
export class OutboxToRedis {
  readonly ctx: JobContext
  readonly stream: string
  readonly redis: Redis
  readonly #relays: Relays
  readonly #close: () => Promise<void>

  private constructor(
    ctx: JobContext,
    stream: string,
    redis: Redis,
    relays: Relays,
    close: () => Promise<void>,
  ) {
    this.ctx = ctx
    this.stream = stream
    this.redis = redis
    this.#relays = relays
    this.#close = close
  }

  static async open(servers: BenchServers, database: string): Promise<OutboxToRedis> {
    const { ctx, close } = await openBenchContext(await createDatabase(servers.postgres, database))
    const redis = new Redis(servers.redis)
    const open = await redisStream({ url: servers.redis, stream: database }).open(sinkContext(ctx, sinkName))
    const relays = new Relays(ctx, open, { sink: sinkName, pageSize })
    return new OutboxToRedis(ctx, database, redis, relays, async () => {
      await open.close()
      await redis.del(database)
      redis.disconnect()
      await close()
    })
  }

  /** Appends events with the library, so many in a transaction. */
  async append(events: number, perTransaction = pageSize): Promise<void> {
    for (let i = 0; i < events; i += perTransaction) {
      const list = Array.from({ length: Math.min(perTransaction, events - i) }, (_, k) => sampleEvent(i + k))
      await this.ctx.databases.primary.transaction((tx) => appendEvents(tx, list))
    }
  }

  /** Carries all that is there into the empty stream, and makes sure that it was these events; per second. */
  async drain(events: number): Promise<number> {
    await this.redis.del(this.stream)
    const started = performance.now()
    const { published } = await this.#relays.drain(new AbortController().signal)
    const rate = published / ((performance.now() - started) / 1_000)
    const there = await this.redis.xlen(this.stream)
    if (published !== events || there !== events)
      throw new Error(`${this.stream}: published ${published}, there ${there}, expected ${events}`)
    return rate
  }

  async close(): Promise<void> {
    await this.#close()
  }
}

export function sampleEvent(order: number): NewEvent {
  return {
    type: 'order.placed',
    subject: `order-${order}`,
    data: { order, total: 1234, currency: 'EUR', items: [{ sku: 'A-1', quantity: 2 }] },
  }
}
