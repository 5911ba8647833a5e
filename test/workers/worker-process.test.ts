import { mkdtemp } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, inject, it } from 'vitest'
import type { JobContext } from '../../src/jobs/context.ts'
import { enqueueBatchJob } from '../../src/jobs/enqueue-batch.ts'
import { newDatabases, openContext } from '../support/database.ts'
import { freePort } from '../support/free-port.ts'
import { preparedGids } from '../support/prepared-gids.ts'
import { HoldfastProcess } from '../support/process.ts'
import { startRedis } from '../support/redis-server.ts'
import { copyBatch } from '../support/scenarios.ts'

const config = join(inject('compiled'), 'test/support/worker.config.js')
const redis = inject('redis')
const backends = [
  ['PostgreSQL', {}] as const,
  ...(redis === undefined ? [] : [['Redis', { REDIS_URL: redis }] as const]),
]
const rows = 2_000

async function arrange(): Promise<{ ctx: JobContext; env: Record<string, string> }> {
  const urls = await newDatabases({ billing: 'west' })
  const ctx = await openContext(urls)
  await ctx.databases.primary.sql`create table source as select generate_series(1, ${rows}::int) as id`
  await ctx.databases.primary.sql`alter table source add primary key (id)`
  await ctx.databases.primary.sql`create table target (id int)`
  return { ctx, env: { DATABASE_URL: urls.primary ?? '', HOLDFAST_DATABASE_BILLING_URL: urls.billing ?? '' } }
}

async function expectAllOnce(ctx: JobContext): Promise<void> {
  const { primary } = ctx.databases
  expect(await primary.sql`select count(*)::int, count(distinct id)::int as ids from target`).toEqual([
    { count: rows, ids: rows },
  ])
  await expect
    .poll(
      async () =>
        (await ctx.databases.get('billing').sql`select count(*)::int from holdfast.inbox`)[0]?.count,
    )
    .toBe(rows)
  const inbox = await ctx.databases.get('billing').sql`
    select count(distinct event_id)::int as events, count(distinct subject)::int as subjects from holdfast.inbox`
  expect(inbox).toEqual([{ events: rows, subjects: rows }])
}

describe('the log of a worker', () => {
  it('says where its config would be, when there is nothing to run', async () => {
    const { env } = await arrange()
    const { HOLDFAST_DATABASE_BILLING_URL: _, ...alone } = env
    const worker = new HoldfastProcess(
      ['worker', '--migrate'],
      alone,
      await mkdtemp(join(tmpdir(), 'holdfast-none-')),
    )
    await worker.says('worker started')
    worker.child.kill('SIGTERM')
    expect((await worker.ended).stderr).toContain(
      'no jobs, batches or sinks: the config is holdfast.config.ts',
    )
  })

  it('has each key once in a line', async () => {
    const { ctx, env } = await arrange()
    const worker = new HoldfastProcess(['worker', '--migrate', '-c', config], env)
    await worker.says('worker started')
    await ctx.databases.primary.sql`select holdfast.enqueue('count', '{"id": 1}')`
    await worker.says('"msg":"job completed"')
    worker.child.kill('SIGTERM')
    const { stderr } = await worker.ended
    const lines = stderr.split('\n').filter((line) => line.includes('"name":"job:count'))
    expect(lines).not.toEqual([])
    for (const line of lines) expect(line.match(/"name":/g)).toHaveLength(1)
  })
})

describe('a worker whose Redis cannot be reached', () => {
  it('ends on the first SIGTERM, before it has started', async () => {
    const { env } = await arrange()
    const nobody = `127.0.0.1:${await freePort()}`
    const worker = new HoldfastProcess(['worker', '--migrate', '-c', config], {
      ...env,
      REDIS_URL: `redis://user:secret@${nobody}`,
    })
    await worker.says('trouble with the queues')
    worker.child.kill('SIGTERM')
    const { code, stdout, stderr } = await worker.ended
    expect({ code, stdout }).toEqual({ code: 0, stdout: '' })
    // Told once, although each queue and each worker reports it.
    expect(stderr.match(/trouble with the queues/g)).toHaveLength(1)
    expect(stderr).toContain(`"server":"${nobody}"`)
    expect(stderr).not.toContain('secret')
  })
})

describe.skipIf(redis === undefined)('a worker whose Redis has gone', () => {
  it('ends on the first SIGTERM, when what it runs has ended, and not at the deadline', async () => {
    const server = await startRedis()
    if (!server) throw new Error('no redis-server')
    const { ctx, env } = await arrange()
    const worker = new HoldfastProcess(['worker', '--migrate', '-c', config], {
      ...env,
      REDIS_URL: server.url,
    })
    await worker.says('worker started')
    await enqueueBatchJob(ctx, copyBatch, {}, 'test')
    await worker.says('batch job completed')
    await expectAllOnce(ctx)
    await server.stop()
    await worker.says('trouble with the queues')
    worker.child.kill('SIGTERM')
    const { code, stderr } = await worker.ended
    expect(code).toBe(0)
    expect(stderr).not.toContain('deadline')
  })
})

describe.each(backends)('holdfast worker with its queues on %s', (_name, queues) => {
  it('runs what is enqueued, delivers its events, and drains on SIGTERM', async () => {
    const { ctx, env } = await arrange()
    const worker = new HoldfastProcess(['worker', '--migrate', '-c', config], { ...env, ...queues })
    await worker.says('worker started')
    await enqueueBatchJob(ctx, copyBatch, {}, 'test')
    await worker.says('batch job completed')
    await expectAllOnce(ctx)
    worker.child.kill('SIGTERM')
    expect(await worker.ended).toMatchObject({ code: 0, stdout: '' })
    expect(await ctx.databases.primary.sql`select 1 from holdfast.workers where kind = 'worker'`).toEqual([])
    expect(await preparedGids(ctx)).toEqual([])
  })

  it('stops between chunks on SIGTERM, and another worker goes on there', async () => {
    const { ctx, env } = await arrange()
    const { jobId } = await enqueueBatchJob(ctx, copyBatch, {}, 'test')
    const first = new HoldfastProcess(['worker', '--migrate', '-c', config], { ...env, ...queues })
    await first.says('worker started')
    await expect
      .poll(async () => (await ctx.databases.primary.sql`select 1 from holdfast.batch_positions`).length)
      .toBeGreaterThan(0)
    first.child.kill('SIGTERM')
    expect(await first.ended).toMatchObject({ code: 0 })
    expect(await preparedGids(ctx)).toEqual([])
    const second = new HoldfastProcess(['worker', '-c', config], { ...env, ...queues })
    const [job] = await ctx.databases.primary.sql`select status from holdfast.batch_jobs where id = ${jobId}`
    if (job?.status !== 'completed') await second.says('batch job completed')
    await expectAllOnce(ctx)
  })

  it('takes over from a worker that was killed', async () => {
    const { ctx, env } = await arrange()
    await enqueueBatchJob(ctx, copyBatch, {}, 'test')
    const first = new HoldfastProcess(['worker', '--migrate', '-c', config], { ...env, ...queues })
    await first.says('worker started')
    await expect
      .poll(async () => (await ctx.databases.primary.sql`select 1 from holdfast.batch_positions`).length)
      .toBeGreaterThan(0)
    first.child.kill('SIGKILL')
    await first.ended
    const second = new HoldfastProcess(['worker', '-c', config], { ...env, ...queues })
    await second.says('worker started')
    await expect
      .poll(async () => (await ctx.databases.primary.sql`select status from holdfast.batch_jobs`)[0]?.status)
      .toBe('completed')
    await expectAllOnce(ctx)
    await expect.poll(() => preparedGids(ctx)).toEqual([])
  })

  it('takes over the ranges of a batch from a worker that was killed', async () => {
    const { ctx, env } = await arrange()
    const { sql } = ctx.databases.primary
    await enqueueBatchJob(ctx, { ...copyBatch, name: 'copy-ranges' }, {}, 'test')
    const first = new HoldfastProcess(['worker', '--migrate', '-c', config], { ...env, ...queues })
    await expect
      .poll(async () => (await sql`select distinct range from holdfast.batch_positions`).length, {
        interval: 5,
      })
      .toBeGreaterThanOrEqual(3)
    first.child.kill('SIGKILL')
    await first.ended
    expect(await sql`select status from holdfast.batch_jobs`).toEqual([{ status: 'running' }])
    const second = new HoldfastProcess(['worker', '-c', config], { ...env, ...queues })
    await second.says('batch job completed')
    await expectAllOnce(ctx)
    await expect.poll(() => preparedGids(ctx)).toEqual([])
    const runs = await sql<{ outcome: string | null }[]>`select outcome from holdfast.batch_runs order by id`
    const [killed, ...others] = runs.map(({ outcome }) => outcome)
    expect([killed, others.at(-1)]).toEqual([null, 'completed'])
    // A lock that was renewed late ends a run, and the next one goes on.
    expect(others.slice(0, -1).filter((outcome) => outcome !== 'stopped')).toEqual([])
  })

  it('ends at once on a second signal, when a job does not let go', async () => {
    const { ctx, env } = await arrange()
    await enqueueBatchJob(ctx, { ...copyBatch, name: 'hang' }, {}, 'test')
    const worker = new HoldfastProcess(['worker', '--migrate', '-c', config], { ...env, ...queues })
    await worker.says('hanging')
    worker.child.kill('SIGTERM')
    await worker.says('stopping')
    worker.child.kill('SIGTERM')
    expect(await worker.ended).toMatchObject({ code: 1 })
    expect(await preparedGids(ctx)).toEqual([])
  })
})
