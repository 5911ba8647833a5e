import { randomUUID } from 'node:crypto'
import { setTimeout as pause } from 'node:timers/promises'
import { Queue, Worker } from 'bullmq'
import { Redis } from 'ioredis'
import { createDatabase } from '../src/db/create-database.ts'
import { defineJob } from '../src/jobs/job-definition.ts'
import { runDistributed } from '../src/jobs/run-distributed.ts'
import { createHoldfast } from '../src/workers/holdfast.ts'
import { openBenchContext } from './context.ts'
import { type Bench, type BenchServers, compare } from './measure.ts'

/** As many as a worker of Holdfast runs at once. */
const concurrency = 4

const insertOne = defineJob({
  name: 'insert-one',
  async stage({ tx, jobId }) {
    await tx`insert into work (note) values (${jobId})`
  },
})

/**
 * Users' jobs that insert one row, from the queue to `completed`, against jobs of BullMQ that do nothing, on the same Redis
 * with as many at once; and apart from the queue what the two phases cost against one plain transaction.
 */
export const jobs: Bench = async (servers, quick) => {
  const url = await createDatabase(servers.postgres, 'bench_jobs')
  const { ctx, close } = await openBenchContext(url)
  const { primary } = ctx.databases
  await primary.sql`create table work (id bigint generated always as identity primary key, note text not null)`
  const count = quick ? 200 : 1_000
  const rounds = quick ? 3 : 5
  const each = async (act: () => Promise<unknown>): Promise<number> => {
    const started = performance.now()
    let begun = 0
    await Promise.all(
      Array.from({ length: concurrency }, async () => {
        while (begun++ < count) await act()
      }),
    )
    return count / ((performance.now() - started) / 1_000)
  }
  try {
    return [
      await compare(
        { name: 'jobs on Redis, against no-op jobs of BullMQ', unit: 'jobs/s', bar: 0, rounds },
        () => ours(servers, url, count),
        () => bare(servers, count),
      ),
      await compare(
        { name: 'of that the two phases, against one plain transaction', unit: 'jobs/s', bar: 0, rounds },
        () =>
          each(() =>
            runDistributed(ctx, `bench:${randomUUID()}`, {
              stage: async (tx) => {
                await tx`insert into work (note) values ('bench')`
              },
            }),
          ),
        () => each(() => primary.transaction(async (tx) => tx`insert into work (note) values ('bench')`)),
      ),
    ]
  } finally {
    await close()
  }
}

async function ours(servers: BenchServers, url: string, count: number): Promise<number> {
  const redis = new Redis(servers.redis)
  const hf = await createHoldfast({ databases: { primary: url }, redis: servers.redis, jobs: [insertOne] })
  const { ctx, close } = await openBenchContext(url)
  const { sql } = ctx.databases.primary
  try {
    const before = await completed(sql)
    await sql`select holdfast.enqueue('insert-one', 'null') from generate_series(1, ${count}::int)`
    const started = performance.now()
    await hf.start()
    while ((await completed(sql)) - before < count) await pause(20)
    return count / ((performance.now() - started) / 1_000)
  } finally {
    await hf.close()
    await close()
    await redis.flushall()
    redis.disconnect()
  }
}

async function completed(
  sql: Awaited<ReturnType<typeof openBenchContext>>['ctx']['databases']['primary']['sql'],
): Promise<number> {
  const [row] = await sql<{ count: number }[]>`
    select count(*)::int as count from holdfast.jobs where status = 'completed'`
  return row?.count ?? 0
}

async function bare(servers: BenchServers, count: number): Promise<number> {
  const connection = { url: servers.redis, maxRetriesPerRequest: null }
  const name = `bench-${randomUUID()}`
  const queue = new Queue(name, { connection })
  const options = { removeOnComplete: true, removeOnFail: true }
  await queue.addBulk(Array.from({ length: count }, () => ({ name: 'noop', data: {}, opts: options })))
  let done = 0
  let finished: () => void = () => undefined
  const all = new Promise<void>((resolve) => {
    finished = resolve
  })
  const started = performance.now()
  const worker = new Worker(name, async () => undefined, { connection, concurrency })
  worker.on('completed', () => {
    if (++done === count) finished()
  })
  await all
  const rate = count / ((performance.now() - started) / 1_000)
  await worker.close()
  await queue.obliterate({ force: true })
  await queue.close()
  return rate
}
