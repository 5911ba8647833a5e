import { type Bench, compare } from './measure.ts'
import { OutboxToRedis, pageSize } from './outbox-to-redis.ts'

/**
 * Events from the outbox to a Redis stream, one worker, 1,000-event pages, against the same XADDs pipelined from
 * memory, 1,000 in a pipeline, with no database at all.
 */
export const outboxThroughput: Bench = async (servers, quick) => {
  const events = quick ? 20_000 : 100_000
  const outbox = await OutboxToRedis.open(servers, 'bench_throughput')
  const { redis, stream } = outbox
  const sameEvents: string[] = []
  try {
    const row = await compare(
      { name: 'outbox to Redis Streams', unit: 'events/s', bar: 1, rounds: quick ? 5 : 9 },
      async () => {
        await outbox.append(events)
        return outbox.drain(events)
      },
      async () => {
        if (sameEvents.length === 0)
          for (const entry of await redis.xrange(stream, '-', '+')) sameEvents.push(entry[1][1] ?? '')
        await redis.del(stream)
        const started = performance.now()
        for (let i = 0; i < events; i += pageSize) {
          const pipeline = redis.pipeline()
          for (const event of sameEvents.slice(i, i + pageSize)) pipeline.xadd(stream, '*', 'event', event)
          await pipeline.exec()
        }
        return events / ((performance.now() - started) / 1_000)
      },
    )
    return [row]
  } finally {
    await outbox.close()
  }
}
