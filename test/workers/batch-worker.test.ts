import { join } from 'node:path'
import { createPostgresBackend, Queue } from 'bullmq'
import { Redis } from 'ioredis'
import { describe, expect, inject, it, onTestFinished } from 'vitest'
import { deferred } from '../../src/db/deferred.ts'
import { createHoldfast, defineBatch, keyset } from '../../src/index.ts'
import { enqueueBatchJob } from '../../src/jobs/enqueue-batch.ts'
import { newDatabase, newDatabases, openContext } from '../support/database.ts'
import { HoldfastProcess } from '../support/process.ts'
import { startRedis } from '../support/redis-server.ts'
import { copyBatch } from '../support/scenarios.ts'

process.env.LOG_LEVEL = 'silent'

const rows = 300

/** A worker whose batch stops in the middle until it is told to go on. */
async function worker(redis: string | undefined, timing: { lockMs?: number } = {}) {
  const reached = deferred<void>()
  const goOn = deferred<void>()
  const batch = defineBatch({
    name: 'copy',
    source: keyset<{ id: number }>({ table: 'source', key: ['id'] }),
    chunkSize: 10,
    async process(chunkRows, { tx, chunk }) {
      if (chunk === 15n) {
        reached.resolve()
        await goOn.promise
      }
      await tx`insert into target ${tx(chunkRows, 'id')}`
    },
  })
  const primary = await newDatabase()
  const hf = await createHoldfast({
    databases: { primary },
    ...(redis === undefined ? {} : { redis }),
    batches: [batch],
    migrate: true,
    timing: { assertEveryMs: 100, ...timing },
  })
  onTestFinished(() => hf.close())
  const ctx = await openContext({ primary })
  const { sql } = ctx.databases.primary
  await sql`create table source as select generate_series(1, ${rows}::int) as id`
  await sql`alter table source add primary key (id)`
  await sql`create table target (id int)`
  await hf.start()
  const { jobId } = await hf.batches.enqueue('copy')
  return { hf, ctx, sql, jobId, primary, reached, goOn }
}

function queueOf(redis: string | undefined, primary: string, installation: string) {
  const queue =
    redis === undefined
      ? new Queue(
          'batch',
          { connection: { connectionString: primary, schema: 'holdfast_bullmq' } },
          createPostgresBackend,
        )
      : new Queue('batch', { connection: { url: redis }, prefix: `{holdfast-${installation}-batch}` })
  onTestFinished(() => queue.close())
  return queue as Pick<Queue, 'getJob'>
}

const redis = inject('redis')

describe.each([
  ['PostgreSQL', undefined] as const,
  ...(redis === undefined ? [] : [['Redis', redis] as const]),
])('a batch on a queue on %s', (_name, url) => {
  it('shows its progress to whoever looks at the queue', async () => {
    const { ctx, jobId, primary, reached, goOn, hf } = await worker(url)
    await reached.promise
    const queue = queueOf(url, primary, ctx.installation)
    await expect
      .poll(async () => (await queue.getJob(jobId))?.progress)
      .toMatchObject({ expected: rows, rows: expect.any(Number) })
    goOn.resolve()
    expect((await hf.batches.wait(jobId)).status).toBe('completed')
  })
})

describe.runIf(redis !== undefined)('a batch whose Redis is flushed in the middle', () => {
  it('goes on where it was: PostgreSQL remembers', async () => {
    const own = (await startRedis())!
    const client = new Redis(own.url)
    onTestFinished(async () => {
      client.disconnect()
      await own.stop()
    })
    const { hf, sql, jobId, reached, goOn } = await worker(own.url, { lockMs: 1_000 })
    await reached.promise
    await client.flushall()
    // Queued again from the table while the first run still has it.
    await expect.poll(() => client.keys('*batch*')).not.toEqual([])
    goOn.resolve()
    expect((await hf.batches.wait(jobId)).status).toBe('completed')
    expect(await sql`select count(*)::int, count(distinct id)::int as ids from target`).toEqual([
      { count: rows, ids: rows },
    ])
    expect(await hf.batches.verify(jobId)).toMatchObject({ proved: true })
  })
})

describe('a worker that hangs without dying', () => {
  it('is overtaken, and what it still does when it wakes up does not count', async () => {
    const urls = await newDatabases({ billing: 'west' })
    const ctx = await openContext(urls)
    const { sql } = ctx.databases.primary
    await sql`create table source as select generate_series(1, 2000) as id`
    await sql`alter table source add primary key (id)`
    await sql`create table target (id int)`
    const env = {
      DATABASE_URL: urls.primary ?? '',
      HOLDFAST_DATABASE_BILLING_URL: urls.billing ?? '',
      LOG_LEVEL: 'info',
    }
    const config = join(inject('compiled'), 'test/support/worker.config.js')
    const start = (...options: string[]) => new HoldfastProcess(['worker', '-c', config, ...options], env)
    await enqueueBatchJob(ctx, copyBatch, {}, 'test')
    const first = start('--migrate')
    await expect
      .poll(async () => (await sql`select from holdfast.batch_positions`).length, { interval: 5 })
      .toBeGreaterThan(0)
    first.child.kill('SIGSTOP')
    const [stoppedAt] = await sql<{ n: number }[]>`select max(n)::int as n from holdfast.batch_positions`
    expect(stoppedAt?.n).toBeLessThan(200)
    const second = start()
    await second.says('batch job completed')
    first.child.kill('SIGCONT')
    first.child.kill('SIGTERM')
    // Not before the chunk that it was in has ended.
    expect(await first.ended).toMatchObject({ code: 0 })
    expect(await sql`select count(*)::int, count(distinct id)::int as ids from target`).toEqual([
      { count: 2000, ids: 2000 },
    ])
    expect(await sql`select status from holdfast.batch_jobs`).toEqual([{ status: 'completed' }])
  })
})
