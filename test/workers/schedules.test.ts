import { Redis } from 'ioredis'
import { pino } from 'pino'
import postgres from 'postgres'
import { describe, expect, inject, it, onTestFinished } from 'vitest'
import { z } from 'zod'
import { createHoldfast, defineBatch, defineJob, type HoldfastConfig, keyset } from '../../src/index.ts'
import { builtInQueues } from '../../src/jobs/job-queue.ts'
import type { Schedule } from '../../src/jobs/schedule-definition.ts'
import { resolveConfig } from '../../src/workers/config.ts'
import { type Context, createContext } from '../../src/workers/context.ts'
import { migrateQueues, Queues } from '../../src/workers/queues.ts'
import { ScheduleService } from '../../src/workers/schedule-service.ts'
import { newDatabase } from '../support/database.ts'
import { FakeClock } from '../support/fake-clock.ts'
import { startRedis } from '../support/redis-server.ts'

process.env.LOG_LEVEL = 'silent'
const minuteMs = 60_000
const log = pino({ level: 'silent' })

const nothing = defineBatch({
  name: 'nothing',
  params: z.object({ year: z.number().optional() }),
  source: keyset<{ id: number }>({ table: 'numbers', key: ['id'] }),
  async process() {},
})
const note = defineJob({
  name: 'note',
  input: z.object({ year: z.number() }),
  async stage({ tx, input, jobId }) {
    await tx`insert into notes (job, year) values (${jobId}, ${input.year})`
  },
})
const hourly = { batch: nothing, cron: '0 * * * *' }

/** The backends, each with how it forgets everything. */
type Backend = { redis?: string; forget: () => Promise<void> }

async function newBackend(which: 'PostgreSQL' | 'Redis', primary: string): Promise<Backend> {
  if (which === 'Redis') {
    const server = await startRedis()
    if (!server) throw new Error('there is no redis-server on the PATH')
    const client = new Redis(server.url)
    onTestFinished(async () => {
      client.disconnect()
      await server.stop()
    })
    return { redis: server.url, forget: async () => void (await client.flushall()) }
  }
  return {
    forget: async () => {
      const queues = new Queues({
        redis: undefined,
        postgres: primary,
        installation: 'x',
        lockMs: 1_000,
        log,
      })
      await queues.obliterate([...builtInQueues, 'jobs'])
      await queues.close()
    },
  }
}

const backends =
  inject('redis') === undefined ? (['PostgreSQL'] as const) : (['PostgreSQL', 'Redis'] as const)

function connect(url: string): postgres.Sql {
  const sql = postgres(url, { max: 1 })
  onTestFinished(() => sql.end())
  return sql
}

/** The parts of a worker, without its loops. */
async function openParts(primary: string, schedules: HoldfastConfig['schedules']): Promise<Context> {
  const config = { databases: { primary }, batches: [nothing], schedules: schedules ?? [], migrate: true }
  const ctx = await createContext(resolveConfig(config, {}), 'worker', log)
  onTestFinished(() => ctx.close())
  return ctx
}

const serviceOf = (ctx: Context, forgetMs: number) =>
  new ScheduleService(ctx, async () => undefined, { forgetMs })

describe.each(backends)('on %s', (which) => {
  const ofBatch: Schedule = {
    name: 'secondly',
    batch: 'nothing',
    params: { year: 2026 },
    cron: '* * * * * *',
  }
  const ofJob: Schedule = { name: 'secondly', job: 'note', input: { year: 2026 }, cron: '* * * * * *' }

  async function secondly(timing: HoldfastConfig['timing'], schedule = ofBatch) {
    const primary = await newDatabase()
    const { redis, forget } = await newBackend(which, primary)
    const sql = connect(primary)
    await sql`create table numbers (id int primary key)`
    await sql`create table notes (job text, year int)`
    const hf = await createHoldfast({
      databases: { primary },
      ...(redis === undefined ? {} : { redis }),
      batches: [nothing],
      jobs: [note],
      schedules: [schedule],
      migrate: true,
      timing: timing ?? {},
    })
    onTestFinished(() => hf.close())
    const jobs = async (filter = {}) =>
      (await (schedule.job === undefined ? hf.batches : hf.jobs).list({ limit: 1_000, ...filter })).length
    return { hf, sql, forget, jobs }
  }

  it('a schedule of every second runs by its ticks alone', async () => {
    // Each loop has its round when the worker starts, and then never again.
    const { hf, sql, jobs } = await secondly({ recoverEveryMs: 3_600_000, assertEveryMs: 3_600_000 })
    expect(await hf.schedules.list()).toMatchObject([
      {
        name: 'secondly',
        enqueues: { kind: 'batch', name: 'nothing' },
        missed: 'run-once',
        lastDueAt: null,
        lastJobId: null,
      },
    ])
    await hf.start()
    await expect.poll(() => jobs({ status: 'completed' })).toBeGreaterThan(5)
    const [listed] = await hf.schedules.list()
    expect(await hf.batches.get(listed?.lastJobId ?? '')).toMatchObject({
      schedule: 'secondly',
      scheduledFor: listed?.lastDueAt,
      params: { year: 2026 },
    })
    await hf.close()
    // Each due time once, and none before it came.
    const [told] = await sql`
      select count(*)::int as jobs, count(distinct scheduled_for)::int as times,
        bool_and(created_at >= scheduled_for) as passed,
        bool_and(scheduled_for = date_trunc('second', scheduled_for)) as whole
      from holdfast.batch_jobs where schedule = 'secondly'`
    expect(told).toEqual({ jobs: told?.times, times: told?.times, passed: true, whole: true })
  })

  it('so does one of a job, whose work is done once for each due time', async () => {
    // The queue is told of each job: nobody asserts what the table says is due.
    const { hf, sql, jobs } = await secondly({ recoverEveryMs: 3_600_000, assertEveryMs: 3_600_000 }, ofJob)
    expect(await hf.schedules.list()).toMatchObject([{ enqueues: { kind: 'job', name: 'note' } }])
    await hf.start()
    await expect.poll(() => jobs({ status: 'completed' })).toBeGreaterThan(5)
    const [listed] = await hf.schedules.list()
    const last = await hf.jobs.wait(listed?.lastJobId ?? '')
    expect(last).toMatchObject({
      status: 'completed',
      input: { year: 2026 },
      schedule: 'secondly',
      scheduledFor: listed?.lastDueAt,
    })
    await hf.close()
    const [told] = await sql`
      select count(*)::int as jobs, count(distinct scheduled_for)::int as times,
        bool_and(created_at >= scheduled_for) as passed
      from holdfast.jobs where schedule = 'secondly'`
    expect(told).toEqual({ jobs: told?.times, times: told?.times, passed: true })
    expect(
      await sql`
        select id from holdfast.jobs where status = 'completed' except all
        (select job from notes where year = 2026)`,
    ).toEqual([])
    expect(await sql`select job from notes group by job having count(*) > 1`).toEqual([])
  })

  it.each([
    ['batch', ofBatch],
    ['job', ofJob],
  ])(
    'of a %s goes on when the queues forget everything, without anybody looking at the table',
    async (_kind, schedule) => {
      const { hf, forget, jobs } = await secondly({ recoverEveryMs: 3_600_000, assertEveryMs: 100 }, schedule)
      await hf.start()
      await expect.poll(jobs).toBeGreaterThan(2)
      await forget()
      const then = await jobs()
      await expect.poll(jobs).toBeGreaterThan(then + 4)
    },
  )

  it('the queue is told of a schedule that is new, that changed or that it forgot, and of no other', async () => {
    const primary = await newDatabase()
    const { redis, forget } = await newBackend(which, primary)
    if (redis === undefined) await migrateQueues(primary)
    const queues = new Queues({ redis, postgres: primary, installation: 'x', lockMs: 1_000, log })
    onTestFinished(() => queues.close())
    const told = (cron: string, tz: string) =>
      queues.scheduleCron('schedules', { name: 'schedule', id: 'nightly', data: {} }, { cron, tz })
    expect(await told('0 3 * * *', 'UTC')).toBe(true)
    expect(await told('0 3 * * *', 'UTC')).toBe(false)
    expect(await told('0 4 * * *', 'UTC')).toBe(true)
    expect(await told('0 4 * * *', 'Europe/Berlin')).toBe(true)
    expect(await told('0 4 * * *', 'Europe/Berlin')).toBe(false)
    await queues.unschedule('schedules', 'nightly')
    expect(await told('0 4 * * *', 'Europe/Berlin')).toBe(true)
    await forget()
    expect(await told('0 4 * * *', 'Europe/Berlin')).toBe(true)
  })
})

describe('a schedule that no config has any more', () => {
  it('is forgotten in the table and in the queue, unless a worker that has it is there', async () => {
    const primary = await newDatabase()
    const sql = connect(primary)
    const before = await openParts(primary, [hourly])
    const old = serviceOf(before, minuteMs)
    await old.start()
    await old.assertQueue()
    const after = await openParts(primary, [])
    const clock = new FakeClock()
    const other = serviceOf({ ...after, clock }, minuteMs)
    await other.start()
    const names = async () => (await sql`select name from holdfast.schedules`).map(({ name }) => String(name))
    const leave = () =>
      sql`update holdfast.schedules set asserted_at = clock_timestamp() - interval '2 minutes'`

    // Whoever has just come does not know who is about to come back.
    await leave()
    await other.round()
    expect(await names()).toEqual(['nothing'])
    // It is there.
    await clock.advance(2 * minuteMs)
    await old.round()
    await other.round()
    expect(await names()).toEqual(['nothing'])
    await leave()
    await other.round()
    expect(await names()).toEqual([])
    const job = { name: 'schedule', id: 'nothing', data: {} }
    expect(await after.queues.scheduleCron('schedules', job, { cron: '0 * * * *', tz: 'UTC' })).toBe(true)

    // A worker that has it after all declares it again.
    await old.round()
    expect(await names()).toEqual(['nothing'])
  })
})

describe('a tick', () => {
  it('that comes a little before its time, by the clock of the database, waits for it', async () => {
    const ctx = await openParts(await newDatabase(), [{ batch: nothing, cron: '* * * * * *' }])
    const service = serviceOf(ctx, minuteMs)
    await service.start()
    await service.tick('nothing', new AbortController().signal)
    expect(await ctx.databases.primary.sql`select 1 from holdfast.batch_jobs`).toHaveLength(1)
  })

  it('of a schedule that this config does not have comes to nothing', async () => {
    const primary = await newDatabase()
    const [other, ctx] = [
      await openParts(primary, [{ batch: nothing, cron: '* * * * * *' }]),
      await openParts(primary, []),
    ]
    await serviceOf(other, minuteMs).start()
    const { sql } = ctx.databases.primary
    await sql`update holdfast.schedules set done_until = clock_timestamp() - interval '1 hour'`
    await serviceOf(ctx, minuteMs).tick('nothing', new AbortController().signal)
    expect(await sql`select 1 from holdfast.batch_jobs`).toHaveLength(0)
  })
})

describe('a worker that starts', () => {
  it('refuses parameters that only an asynchronous schema can tell', async () => {
    const params = z.object({ year: z.number() }).refine(async () => false, 'there is no such year')
    const strict = defineBatch({ name: 'strict', params, source: nothing.source, async process() {} })
    const hf = await createHoldfast({
      databases: { primary: await newDatabase() },
      batches: [strict],
      schedules: [{ batch: strict, params: { year: 1 }, cron: '0 * * * *' }],
      migrate: true,
    })
    onTestFinished(() => hf.close())
    await expect(hf.start()).rejects.toMatchObject({
      code: 'HOLDFAST_INVALID_CONFIG',
      problems: ['schedule strict: params of strict: there is no such year'],
    })
  })

  it('refuses an input that only an asynchronous schema can tell', async () => {
    const input = z.object({ year: z.number() }).refine(async () => false, 'there is no such year')
    const strict = defineJob({ name: 'strict', input, stage: () => null })
    const hf = await createHoldfast({
      databases: { primary: await newDatabase() },
      jobs: [strict],
      schedules: [{ job: strict, input: { year: 1 }, cron: '0 * * * *' }],
      migrate: true,
    })
    onTestFinished(() => hf.close())
    await expect(hf.start()).rejects.toMatchObject({
      code: 'HOLDFAST_INVALID_CONFIG',
      problems: ['schedule strict: input of strict: there is no such year'],
    })
  })

  it('makes up at once for what was due while nobody was there', async () => {
    const primary = await newDatabase()
    const sql = connect(primary)
    // Far from now, whatever time it is.
    const cron = `${(new Date().getUTCMinutes() + 30) % 60} * * * *`
    const config: HoldfastConfig = {
      databases: { primary },
      batches: [nothing],
      schedules: [{ batch: nothing, cron }],
      migrate: true,
      timing: { recoverEveryMs: 3_600_000 },
    }
    const first = await createHoldfast(config)
    onTestFinished(() => first.close())
    await first.start()
    await first.close()
    await sql`update holdfast.schedules set done_until = clock_timestamp() - interval '5 hours'`
    const second = await createHoldfast(config)
    onTestFinished(() => second.close())
    await second.start()
    const jobs = await second.batches.list()
    expect(jobs).toMatchObject([{ batch: 'nothing', schedule: 'nothing' }])
    expect(await second.schedules.list()).toMatchObject([
      { lastJobId: jobs[0]?.id, lastDueAt: jobs[0]?.scheduledFor },
    ])
  })
})
