import { join } from 'node:path'
import { Redis } from 'ioredis'
import { pino } from 'pino'
import postgres from 'postgres'
import { describe, expect, inject, it, onTestFinished } from 'vitest'
import { deferred } from '../../src/db/deferred.ts'
import { findJob, insertJob } from '../../src/db/jobs.ts'
import type { Tx } from '../../src/index.ts'
import { createHoldfast, defineJob, type JobDefinition } from '../../src/index.ts'
import { enqueueJob } from '../../src/jobs/enqueue-job.ts'
import { type HoldfastConfig, resolveConfig } from '../../src/workers/config.ts'
import { createContext } from '../../src/workers/context.ts'
import { JobService } from '../../src/workers/job-service.ts'
import { Jobs } from '../../src/workers/jobs.ts'
import { newDatabase, newDatabases, openContext } from '../support/database.ts'
import { HoldfastProcess } from '../support/process.ts'
import { startRedis } from '../support/redis-server.ts'

process.env.LOG_LEVEL = 'silent'
const redis = inject('redis')
const backends = [
  ['PostgreSQL', {}] as const,
  ...(redis === undefined ? [] : [['Redis', { redis }] as const]),
]

async function open(jobs: readonly JobDefinition[], more: HoldfastConfig = {}) {
  const primary = await newDatabase()
  const sql = postgres(primary, { max: 2, onnotice: () => undefined })
  onTestFinished(() => sql.end())
  await sql`create table orders (n int, at timestamptz default clock_timestamp())`
  const timing = { assertEveryMs: 50, ...more.timing }
  const config: HoldfastConfig = { ...more, databases: { primary }, jobs, migrate: true, timing }
  const hf = await createHoldfast(config)
  onTestFinished(() => hf.close())
  return { hf, sql }
}

const place = defineJob({
  name: 'place',
  async stage({ tx, input }) {
    await tx`insert into orders (n) values (${(input as { n: number }).n})`
    return input
  },
  effects: ({ staged }) => staged,
})

describe.each(backends)('jobs with their queues on %s', (_name, queues) => {
  it('run when they are enqueued, by the definition or its name, in a transaction or without', async () => {
    const { hf, sql } = await open([place], queues)
    await hf.start()
    const ids = [await hf.enqueue(place, { n: 1 }), await hf.enqueue('place', { n: 2 })]
    await hf.beginDistributed('with-work', async (tx: Tx) => {
      await tx`insert into orders (n) values (0)`
      ids.push(await hf.enqueue('place', { n: 3 }, { tx }))
    })
    await hf.commitDistributed('with-work')
    const undone = sql.begin(async (tx) => {
      await hf.enqueue('place', { n: 4 }, { tx })
      throw new Error('undone')
    })
    await expect(undone).rejects.toThrow('undone')
    for (const [i, id] of ids.entries())
      expect(await hf.jobs.wait(id)).toMatchObject({ status: 'completed', result: { n: i + 1 } })
    expect((await hf.jobs.list({ name: 'place' })).map(({ status }) => status)).toEqual(
      Array(3).fill('completed'),
    )
    expect((await sql`select n from orders order by n`).map(({ n }) => n as number)).toEqual([0, 1, 2, 3])
    await expect(hf.enqueue('nothing', null)).rejects.toMatchObject({ code: 'HOLDFAST_INVALID_CONFIG' })
  })

  it('run after their delay, by priority, and as many at once as the definition says', async () => {
    let [running, most] = [0, 0]
    const order: string[] = []
    const gate = deferred<void>()
    const one = defineJob({
      name: 'one-by-one',
      concurrency: 1,
      async stage({ jobId }) {
        order.push(jobId)
        most = Math.max(most, ++running)
        await gate.promise
      },
      effects: () => void running--,
    })
    const { hf, sql } = await open([one], queues)
    const late = await hf.enqueue('one-by-one', null, { delayMs: 1_000 })
    const low = await hf.enqueue('one-by-one', null, { priority: 5 })
    const high = await hf.enqueue('one-by-one', null, { priority: 1 })
    await hf.start()
    await expect.poll(() => order.length).toBe(1)
    gate.resolve()
    for (const id of [late, low, high]) expect((await hf.jobs.wait(id)).status).toBe('completed')
    expect(most).toBe(1)
    expect(order.indexOf(high.jobId)).toBeLessThan(order.indexOf(low.jobId))
    const [row] = await sql`select started_at >= created_at + interval '1 second' as late from holdfast.jobs
      where id = ${late.jobId}`
    expect(row).toEqual({ late: true })
  })

  it('are tried again after their pause, redriven when they have failed, and cancelled while they run', async () => {
    let [tries, mended] = [0, false]
    const aborted = deferred<void>()
    const entered = deferred<void>()
    const failing = defineJob({
      name: 'failing',
      retry: { attempts: 3, backoffMs: 10 },
      stage: () => void tries++,
      effects() {
        if (!mended) throw new Error('not yet')
      },
    })
    const hanging = defineJob({
      name: 'hanging',
      stage: () => null,
      async effects({ signal }) {
        entered.resolve()
        await new Promise((resolve) => signal.addEventListener('abort', resolve))
        aborted.resolve()
        // Effects that ended well all the same could still commit before the cancel has decided.
        signal.throwIfAborted()
      },
    })
    const { hf } = await open([failing, hanging], queues)
    await hf.start()
    const hangs = await hf.enqueue('hanging', null)
    const { jobId } = await hf.enqueue('failing', null)
    expect(await hf.jobs.wait(jobId)).toMatchObject({ status: 'failed', attempts: 3 })
    // Staged again without being charged where another run, or the database, was in the way.
    expect(tries).toBeGreaterThanOrEqual(3)
    mended = true
    expect(await hf.jobs.retry(jobId)).toBe('queued')
    expect(await hf.jobs.wait(jobId)).toMatchObject({ status: 'completed', attempts: 3 })
    await entered.promise
    // As it is then: its run may have let go by now.
    expect(['cancelling', 'cancelled']).toContain(await hf.jobs.cancel(hangs.jobId))
    await aborted.promise
    expect((await hf.jobs.wait(hangs)).status).toBe('cancelled')
  })

  it('are handed back by a worker that stops, where they do not', async () => {
    const entered = deferred<void>()
    const slow = defineJob({
      name: 'slow',
      stage: () => null,
      async effects({ signal }) {
        entered.resolve()
        await new Promise((resolve) => signal.addEventListener('abort', resolve))
        signal.throwIfAborted()
      },
    })
    const { hf, sql } = await open([slow], { ...queues, timing: { drainMs: 12_000 } })
    await hf.start()
    const { jobId } = await hf.enqueue('slow', null)
    await entered.promise
    await hf.close()
    expect(await sql`select status, owner, attempts from holdfast.jobs where id = ${jobId}`).toEqual([
      { status: 'queued', owner: null, attempts: 0 },
    ])
    expect(await sql`select gid from pg_prepared_xacts where database = current_database()`).toEqual([])
  })
})

it('is enqueued although its queue does not answer, which is not asked again until it has', async () => {
  const config = resolveConfig(
    { databases: { primary: await newDatabase() }, jobs: [place], migrate: true },
    {},
  )
  const ctx = await createContext(config, 'worker', pino({ level: 'silent' }))
  onTestFinished(() => ctx.close())
  const asked = [deferred<void>(), deferred<void>()]
  let times = 0
  const add = () => asked[times++]?.promise
  const jobs = new Jobs({ ...ctx, queues: { add } as unknown as typeof ctx.queues })
  for (const n of [1, 2, 3]) await jobs.enqueue('place', { n })
  expect(times).toBe(1)
  asked[0]?.resolve()
  asked[1]?.resolve()
  await jobs.enqueue('place', { n: 4 })
  expect([times, await jobs.list()]).toMatchObject([2, { length: 4 }])
})

describe('a job that runs', () => {
  async function runSlow() {
    const [entered, held, lock, stopping] = [
      deferred<void>(),
      deferred<void>(),
      new AbortController(),
      new AbortController(),
    ]
    const slow = defineJob({
      name: 'slow',
      stage: () => null,
      async effects({ signal }) {
        entered.resolve()
        await held.promise
        signal.throwIfAborted()
        return 'done'
      },
    })
    const config = resolveConfig(
      { databases: { primary: await newDatabase() }, jobs: [slow], migrate: true },
      {},
    )
    const ctx = await createContext(config, 'worker', pino({ level: 'silent' }))
    onTestFinished(() => ctx.close())
    const { jobId } = await enqueueJob(ctx, slow, null)
    const run = new JobService(ctx, stopping.signal).run({ jobId, job: 'slow' }, lock.signal)
    await entered.promise
    const ended = async () => {
      held.resolve()
      await run
      return findJob(ctx.databases.primary.sql, jobId)
    }
    return { lock, stopping, ended }
  }

  it('may end by itself where its worker stops', async () => {
    const { lock, stopping, ended } = await runSlow()
    stopping.abort()
    // As BullMQ's worker does when it closes.
    lock.abort()
    expect(await ended()).toMatchObject({ status: 'completed', result: 'done' })
  })

  it('is aborted at once where its lock was lost', async () => {
    const { lock, ended } = await runSlow()
    lock.abort()
    expect(await ended()).toMatchObject({ status: 'queued', attempts: 0 })
  })
})

describe.runIf(redis !== undefined)('when Redis forgets everything', () => {
  it('every job that was queued runs, once', async () => {
    const server = await startRedis()
    if (!server) throw new Error('there is no redis-server on the PATH')
    onTestFinished(() => server.stop())
    const client = new Redis(server.url)
    onTestFinished(() => client.disconnect())
    const urls = await newDatabases({ billing: 'west' })
    const ctx = await openContext(urls)
    const { sql } = ctx.databases.primary
    await sql`create table target (id int)`
    const env = {
      DATABASE_URL: urls.primary ?? '',
      HOLDFAST_DATABASE_BILLING_URL: urls.billing ?? '',
      REDIS_URL: server.url,
      LOG_LEVEL: 'info',
    }
    const jobs = 60
    const enqueue = async (from: number) => {
      for (let id = from; id < from + jobs / 2; id++) {
        await insertJob(sql, {
          name: 'count',
          input: JSON.stringify({ id }),
          delayMs: 0,
          priority: 0,
          deduplication: null,
          correlationId: null,
        })
      }
    }
    await enqueue(0)
    const worker = new HoldfastProcess(
      ['worker', '-c', join(inject('compiled'), 'test/support/worker.config.js')],
      env,
    )
    await worker.says('worker started')
    // Some have run, some are in the queue, some are just being run: then all of it is gone.
    await enqueue(jobs / 2)
    await expect.poll(async () => (await sql`select 1 from target`).length).toBeGreaterThan(0)
    await client.flushall()
    await expect
      .poll(async () => (await sql`select 1 from holdfast.jobs where status = 'completed'`).length)
      .toBe(jobs)
    expect(await sql`select count(*)::int, count(distinct id)::int as ids from target`).toEqual([
      { count: jobs, ids: jobs },
    ])
    worker.child.kill('SIGTERM')
    expect(await worker.ended).toMatchObject({ code: 0 })
  })
})
