import { setTimeout as pause } from 'node:timers/promises'
import { Redis } from 'ioredis'
import { createDatabase } from '../src/db/create-database.ts'
import { BenchWorker } from './bench-worker.ts'
import { openBenchContext } from './context.ts'
import { fillInDatabase } from './fill-in-database.ts'
import { atMost, type Bench, type BenchServers, median } from './measure.ts'

const sizes = { few: 10_000, many: 1_000_000 }

/** The peak memory of a worker that drains a million events, against one that drains ten thousand. */
export const outboxMemory: Bench = async (servers, quick) => {
  const few = await fill(servers, 'bench_memory_few', sizes.few)
  const many = await fill(servers, 'bench_memory_many', sizes.many)
  const peaks: { few: number; many: number }[] = []
  for (let round = 0; round < (quick ? 3 : 5); round++) {
    // A sink that is new begins with the oldest event.
    peaks.push({
      few: await peakOf(servers, few, sizes.few, `few-${round}`),
      many: await peakOf(servers, many, sizes.many, `many-${round}`),
    })
  }
  const row = atMost({
    name: 'peak memory for 1,000,000 events, against 10,000',
    unit: 'MB',
    ours: median(peaks.map(({ many }) => many)),
    limit: median(peaks.map(({ few }) => few)),
    bar: 0.83,
  })
  return [row]
}

async function fill(servers: BenchServers, database: string, events: number): Promise<string> {
  const url = await createDatabase(servers.postgres, database)
  const { ctx, close } = await openBenchContext(url)
  try {
    await fillInDatabase(ctx.databases.primary, events, 2)
  } finally {
    await close()
  }
  return url
}

async function peakOf(servers: BenchServers, url: string, events: number, stream: string): Promise<number> {
  const redis = new Redis(servers.redis)
  const worker = new BenchWorker(url, servers.redis, stream)
  try {
    await worker.whileAlive(untilThere(redis, stream, events))
    return await worker.stop()
  } finally {
    worker.kill()
    // The queues as well: the next worker has no sink of this name.
    await redis.flushall()
    redis.disconnect()
  }
}

async function untilThere(redis: Redis, stream: string, events: number): Promise<void> {
  const deadline = Date.now() + 120_000
  for (let there = 0; there < events; there = await redis.xlen(stream)) {
    if (Date.now() > deadline) throw new Error(`${stream} has ${there} of ${events} events after two minutes`)
    await pause(100)
  }
}
