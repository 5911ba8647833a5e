import { Queue } from 'bullmq'
import { Redis } from 'ioredis'
import postgres from 'postgres'
import { afterAll, describe, expect, inject, it, onTestFinished } from 'vitest'
import { deferred } from '../../src/db/deferred.ts'
import { createHoldfast, defineJob, type HoldfastConfig, type JobDefinition } from '../../src/index.ts'
import { newDatabase } from '../support/database.ts'
import { startRedisCluster } from '../support/redis-cluster.ts'
import { startRedis } from '../support/redis-server.ts'

process.env.LOG_LEVEL = 'silent'
const redis = inject('redis')
const cluster = await startRedisCluster()
afterAll(() => cluster?.stop())
const backends = [
  ['PostgreSQL', {}] as const,
  ...(redis === undefined ? [] : [['Redis', { redis }] as const]),
  ...(cluster === undefined ? [] : [['a Redis Cluster', { redis: cluster.urls }] as const]),
]

async function arrange(jobs: readonly JobDefinition[], more: HoldfastConfig = {}) {
  const primary = await newDatabase()
  const sql = postgres(primary, { max: 2, onnotice: () => undefined })
  onTestFinished(() => sql.end())
  await sql`create table runs (job text, at timestamptz default clock_timestamp())`
  const open = async (queues: HoldfastConfig['queues'] = {}) => {
    const config = {
      ...more,
      databases: { primary },
      jobs,
      queues,
      timing: { assertEveryMs: 50, recoverEveryMs: 200 },
    }
    const hf = await createHoldfast({ ...config, migrate: true })
    onTestFinished(() => hf.close())
    return hf
  }
  return { sql, open }
}

/** A job that says when it is there, and waits for the gate. */
function gated(name: string, queue: string | undefined, gate: Promise<void>) {
  const at = { running: 0, most: 0, begun: 0 }
  const job = defineJob({
    name,
    ...(queue === undefined ? {} : { queue }),
    async stage() {
      at.begun++
      at.most = Math.max(at.most, ++at.running)
      await gate
      at.running--
    },
  })
  return { job, at }
}

const quick = defineJob({
  name: 'quick',
  async stage({ tx, jobId }) {
    await tx`insert into runs (job) values (${jobId})`
  },
})

const ids = (enqueued: readonly { jobId: string }[]) => enqueued.map(({ jobId }) => jobId)

describe.each(backends)('queues of jobs, on %s', (_name, backend) => {
  it('run so many of their jobs at once in a process, and none keeps another from its own', async () => {
    const gate = deferred<void>()
    const mail = gated('mail', 'mails', gate.promise)
    const { sql, open } = await arrange([mail.job, quick], backend)
    const hf = await open({ mails: { concurrency: 2 } })
    // More than a worker asserts at once.
    await sql`select holdfast.enqueue('mail', 'null') from generate_series(1, 250)`
    await hf.start()
    await expect.poll(() => mail.at.running).toBe(2)
    const [row] = await sql<{ id: string }[]>`select holdfast.enqueue('quick', 'null') as id`
    expect(await hf.jobs.wait(row?.id ?? '')).toMatchObject({ status: 'completed' })
    gate.resolve()
    await expect.poll(() => mail.at.begun).toBe(250)
    expect(mail.at.most).toBe(2)
  })

  it('run so many of their jobs at once over all processes', async () => {
    const gate = deferred<void>()
    const mail = gated('mail', 'mails', gate.promise)
    const { open } = await arrange([mail.job, quick], backend)
    const queues = { mails: { globalConcurrency: 1 } }
    const [one, two] = [await open(queues), await open(queues)]
    const jobs = [await one.enqueue(mail.job, null), await two.enqueue(mail.job, null)]
    await Promise.all([one.start(), two.start()])
    await expect.poll(() => mail.at.running).toBe(1)
    // Whatever comes after it in the queues has been looked at by now.
    for (const hf of [one, two, one, two]) await hf.jobs.wait(await hf.enqueue(quick, null))
    gate.resolve()
    for (const id of ids(jobs)) expect(await one.jobs.wait(id)).toMatchObject({ status: 'completed' })
    expect(mail.at.most).toBe(1)
  })

  it('begin so many in a time, over all processes', async () => {
    const limited = defineJob({ ...quick, name: 'limited', queue: 'limited' })
    const { sql, open } = await arrange([limited], backend)
    const queues = { limited: { concurrency: 10, rateLimit: { max: 2, durationMs: 1_000 } } }
    const [one, two] = [await open(queues), await open(queues)]
    await Promise.all([one.start(), two.start()])
    const jobs = await Promise.all(Array.from({ length: 9 }, () => one.enqueue(limited, null)))
    for (const id of ids(jobs)) expect(await one.jobs.wait(id)).toMatchObject({ status: 'completed' })
    const [times] = await sql<{ runs: number; ms: number }[]>`
      select count(*)::int as runs, extract(epoch from max(at) - min(at))::float8 * 1000 as ms from runs`
    expect(times?.runs).toBe(9)
    // Five windows; the first and the last one need not be whole.
    expect(times?.ms).toBeGreaterThan(3_000)
  })

  it('are worked on by the processes that are told to', async () => {
    const mail = defineJob({ ...quick, name: 'mail', queue: 'mails' })
    const { open } = await arrange([mail, quick], backend)
    const [mails, rest] = [await open(), await open()]
    await mails.start({ queues: ['mails'] })
    const waiting = await mails.enqueue(quick, null)
    const mailed = await mails.enqueue(mail, null)
    expect(await mails.jobs.wait(mailed)).toMatchObject({ status: 'completed' })
    expect(await mails.jobs.get(waiting.jobId)).toMatchObject({ status: 'queued' })
    await rest.start({ queues: ['jobs', 'outbox', 'cleanup', 'batch', 'schedules'] })
    expect(await rest.jobs.wait(waiting)).toMatchObject({ status: 'completed' })
    await expect((await open()).start({ queues: ['mial'] })).rejects.toMatchObject({
      code: 'HOLDFAST_INVALID_CONFIG',
      message: expect.stringContaining('there are outbox, cleanup, batch, schedules, jobs, mails') as string,
    })
  })
})

describe.skipIf(redis === undefined)('the limits of a queue', () => {
  it('are back after Redis was flushed, and gone when the config has none', async () => {
    const server = await startRedis()
    if (!server) throw new Error('no redis-server')
    onTestFinished(() => server.stop())
    const client = new Redis(server.url)
    onTestFinished(() => client.disconnect())
    const { sql, open } = await arrange([quick], { redis: server.url })
    const hf = await open({ jobs: { globalConcurrency: 3, rateLimit: { max: 5, durationMs: 1_000 } } })
    const [installation] = await sql<{ id: string }[]>`select id from holdfast.installation`
    const queue = new Queue('jobs', {
      connection: { url: server.url },
      prefix: `{holdfast-${installation?.id ?? ''}-jobs}`,
    })
    onTestFinished(() => queue.close())
    const limits = async () => [await queue.getGlobalConcurrency(), await queue.getGlobalRateLimit()]
    await hf.start()
    const ours = [3, { max: 5, duration: 1_000 }]
    expect(await limits()).toEqual(ours)
    await client.flushall()
    await expect.poll(limits).toEqual(ours)
    await hf.close()
    // An older worker that goes on for a while sets them again.
    const without = await open()
    await without.start()
    await queue.setGlobalConcurrency(3)
    await expect.poll(limits).toEqual([null, null])
  })
})
