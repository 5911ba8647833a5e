import { afterEach, describe, expect, it, vi } from 'vitest'
import { z } from 'zod'
import { findBatchJob, listBatchJobs, moveBatchJob } from '../../src/db/batch-jobs.ts'
import { findJob, listJobs } from '../../src/db/jobs.ts'
import { declareSchedule, readSchedules, type ScheduleRow } from '../../src/db/schedules.ts'
import { watchSteps } from '../../src/db/steps.ts'
import { type BatchDefinition, defineBatch } from '../../src/jobs/batch-definition.ts'
import type { JobContext } from '../../src/jobs/context.ts'
import { defineJob, type JobDefinition } from '../../src/jobs/job-definition.ts'
import { keyset } from '../../src/jobs/keyset.ts'
import { alertOverdueSchedules, runSchedules } from '../../src/jobs/run-schedules.ts'
import { newDatabases, openContext } from '../support/database.ts'

const minuteMs = 60_000
const start = Date.parse('2026-05-01T00:00:00Z')
const at = (minutes: number) => new Date(start + minutes * minuteMs)
const name = 'every-minute'

const source = keyset<{ id: number }>({ table: 'source', key: ['id'] })
const copy = defineBatch({
  name: 'copy',
  params: z.object({ year: z.number() }),
  source,
  async process() {},
})

type Settings = Partial<Pick<ScheduleRow, 'name' | 'cron' | 'missed' | 'target'>>

function declare({ databases }: JobContext, settings: Settings = {}, now = at(0)): Promise<void> {
  const target = { batch: 'copy', params: { year: 2026 } }
  const schedule = { name, cron: '* * * * *', tz: 'UTC', missed: 'backfill' as const, target, ...settings }
  return declareSchedule(databases.primary.sql, schedule, now)
}

async function arrange(settings: Settings = {}): Promise<JobContext> {
  const ctx = await openContext(await newDatabases())
  await declare(ctx, settings)
  return ctx
}

function look(ctx: JobContext, now: Date, batch: BatchDefinition = copy) {
  const definitions = { batches: new Map([[batch.name, batch]]), jobs: new Map() }
  return runSchedules(ctx, definitions, [name], { now: async () => now })
}

/** The due times of the jobs that there are, in the order in which they were recorded, as minutes. */
async function dueTimes({ databases }: JobContext): Promise<number[]> {
  const jobs = await listBatchJobs(databases.primary.sql, { limit: 1_000 })
  return jobs.toReversed().map(({ scheduledFor }) => ((scheduledFor?.getTime() ?? 0) - start) / minuteMs)
}

const row = async ({ databases }: JobContext) => (await readSchedules(databases.primary.sql, [name]))[0]

afterEach(() => watchSteps(undefined))

describe('what is due', () => {
  it('is recorded with its due time, and with what the schedule says', async () => {
    const ctx = await arrange()
    expect(await look(ctx, at(0.9))).toMatchObject([{ runs: [], nextDueAt: at(1), inMs: 6_000 }])
    const [looked] = await look(ctx, at(1))
    const jobId = looked?.runs[0]?.jobId ?? ''
    expect(looked).toMatchObject({
      runs: [{ dueAt: at(1), existed: false }],
      nextDueAt: at(2),
      inMs: minuteMs,
    })
    expect(await findBatchJob(ctx.databases.primary.sql, jobId)).toMatchObject({
      batch: 'copy',
      params: { year: 2026 },
      status: 'queued',
      schedule: name,
      scheduledFor: at(1),
    })
    expect(await row(ctx)).toMatchObject({ doneUntil: at(1), lastDueAt: at(1), lastJobId: jobId })
    expect((await row(ctx))?.lastEnqueuedAt).toBeInstanceOf(Date)
  })

  it('is enqueued once, however many workers ask at the same time', async () => {
    const urls = await newDatabases()
    const workers = await Promise.all([openContext(urls), openContext(urls), openContext(urls)])
    const [first] = workers
    if (!first) throw new Error('no worker')
    await declare(first)
    // Each asks again and again, with its own idea of the time.
    const asks = workers.map(async (worker, i) => {
      for (let minute = 1; minute <= 40; minute++) await look(worker, at(minute + [0, 7, -3][i]!))
    })
    await Promise.all(asks)
    // One that is always a moment behind another moves nothing; whoever looks next does.
    await look(first, at(47))
    expect(await dueTimes(first)).toEqual(Array.from({ length: 47 }, (_, i) => i + 1))
  })

  it('is neither lost nor doubled when clocks differ', async () => {
    const ctx = await arrange()
    await look(ctx, at(10))
    expect((await look(ctx, at(4)))[0]?.runs).toEqual([])
    await look(ctx, at(11))
    expect(await dueTimes(ctx)).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11])
  })

  it.each(['schedule.moved', 'schedule.recorded'] as const)(
    'leaves nothing when it fails at %s',
    async (step) => {
      const ctx = await arrange()
      const before = await row(ctx)
      watchSteps({
        steps: new Set([step]),
        reached() {
          throw new Error('the plug was pulled')
        },
      })
      expect(await look(ctx, at(3))).toEqual([])
      expect(await dueTimes(ctx)).toEqual([])
      expect(await row(ctx)).toEqual(before)
      watchSteps(undefined)
      await look(ctx, at(3))
      expect(await dueTimes(ctx)).toEqual([1, 2, 3])
    },
  )

  it('waits for a worker whose config has the batch, and is an alert meanwhile', async () => {
    const ctx = await arrange({ target: { batch: 'unknown', params: {} } })
    const raise = vi.spyOn(ctx.alerts, 'raise').mockImplementation(() => undefined)
    const alerts = async (now: Date) => {
      await look(ctx, now)
      await alertOverdueSchedules(ctx, [name], { now: async () => now })
      return raise.mock.calls.map(([{ kind, subject }]) => [kind, subject])
    }
    expect(await alerts(at(2.9))).toEqual([])
    expect(await alerts(at(3))).toEqual([['overdue', name]])
    expect(raise.mock.calls[0]?.[0].message).toContain('2026-05-01T00:01:00.000Z, 2 minutes ago')
    raise.mockClear()
    await look(ctx, at(3), { ...copy, name: 'unknown' })
    // Its parameters do not fit, so it waits for them as well.
    expect(await dueTimes(ctx)).toEqual([])
    await look(ctx, at(3), defineBatch({ name: 'unknown', source, async process() {} }))
    expect(await dueTimes(ctx)).toEqual([1, 2, 3])
    expect(await alerts(at(4.5))).toEqual([])
  })
})

describe('after a down time', () => {
  it('run-once makes one job, for the newest due time', async () => {
    const ctx = await arrange({ missed: 'run-once' })
    await look(ctx, at(600))
    await look(ctx, at(600))
    await look(ctx, at(601))
    expect(await dueTimes(ctx)).toEqual([600, 601])
  })

  it('skip passes over what is later than its grace', async () => {
    const ctx = await arrange({ missed: 'skip', cron: '0 * * * *' })
    await look(ctx, at(150))
    expect(await dueTimes(ctx)).toEqual([])
    expect(await row(ctx)).toMatchObject({ lastDueAt: null })
    await look(ctx, at(181))
    await look(ctx, at(241.9))
    expect(await dueTimes(ctx)).toEqual([180, 240])
  })

  it('backfill makes one for each, the oldest first, a hundred at a look', async () => {
    const ctx = await arrange()
    await look(ctx, at(230))
    expect(await dueTimes(ctx)).toEqual(Array.from({ length: 100 }, (_, i) => i + 1))
    await look(ctx, at(230))
    await look(ctx, at(230))
    await look(ctx, at(230))
    expect(await dueTimes(ctx)).toEqual(Array.from({ length: 230 }, (_, i) => i + 1))
  })

  it('counts a due time as done by the job that is open, where the batch is unique', async () => {
    const ctx = await arrange()
    const unique = { ...copy, unique: 'params' } as BatchDefinition
    const [first] = await look(ctx, at(2), unique)
    const jobId = first?.runs[0]?.jobId ?? ''
    expect(first?.runs).toMatchObject([
      { dueAt: at(1), existed: false },
      { dueAt: at(2), existed: true, jobId },
    ])
    await look(ctx, at(3), unique)
    expect(await dueTimes(ctx)).toEqual([1])
    expect(await row(ctx)).toMatchObject({ lastDueAt: at(3), lastJobId: jobId, doneUntil: at(3) })
    await moveBatchJob(ctx.databases.primary.sql, jobId, { queued: 'completed' })
    await look(ctx, at(4), unique)
    expect(await dueTimes(ctx)).toEqual([1, 4])
  })
})

describe('a schedule that is declared', () => {
  it('again as it was goes on where it was; with another cron it begins at once', async () => {
    const ctx = await arrange()
    await look(ctx, at(2))
    const before = await row(ctx)
    await declare(ctx, {}, at(10))
    expect(await row(ctx)).toEqual(before)
    await declare(ctx, { missed: 'run-once' }, at(10))
    expect(await row(ctx)).toMatchObject({ doneUntil: at(2), missed: 'run-once' })
    await declare(ctx, { cron: '*/15 * * * *' }, at(20))
    await look(ctx, at(29))
    expect(await dueTimes(ctx)).toEqual([1, 2])
    await look(ctx, at(30))
    // By a clock that has gone back: what is done stays done.
    await declare(ctx, { cron: '*/5 * * * *' }, at(3))
    await look(ctx, at(36))
    expect(await dueTimes(ctx)).toEqual([1, 2, 30, 35])
  })

  it('anew while a look is under way makes that look record nothing', async () => {
    const ctx = await arrange()
    const params = z.object({}).refine(async () => {
      await declare(ctx, { cron: '30 * * * *' }, at(5))
      return true
    })
    const meanwhile = defineBatch({ name: 'copy', params, source, async process() {} })
    expect((await look(ctx, at(4), meanwhile as BatchDefinition))[0]?.runs).toEqual([])
    expect(await dueTimes(ctx)).toEqual([])
    await look(ctx, at(30))
    expect(await dueTimes(ctx)).toEqual([30])
  })
})

describe('a schedule of a job', () => {
  const greet = defineJob({
    name: 'greet',
    input: z.object({ name: z.string().transform((text) => text.length) }),
    stage: () => null,
  })
  const target = { job: 'greet', input: { name: 'Ada' } }

  function lookForJobs(ctx: JobContext, now: Date, ...jobs: readonly JobDefinition[]) {
    const definitions = { batches: new Map(), jobs: new Map(jobs.map((job) => [job.name, job])) }
    return runSchedules(ctx, definitions, [name], { now: async () => now })
  }

  const times = async ({ databases }: JobContext) =>
    (await listJobs(databases.primary.sql, { limit: 1_000 }))
      .map(({ scheduledFor }) => ((scheduledFor?.getTime() ?? 0) - start) / minuteMs)
      .toSorted((one, other) => one - other)

  it('records each with its due time, its input as it was given, and no other column of it', async () => {
    const ctx = await arrange({ target })
    const [looked] = await lookForJobs(ctx, at(1), greet)
    const [run] = looked?.runs ?? []
    expect(run).toEqual({
      dueAt: at(1),
      jobId: expect.stringMatching(/^greet-/),
      existed: false,
      of: { kind: 'job', name: 'greet' },
    })
    expect(await findJob(ctx.databases.primary.sql, run?.jobId ?? '')).toMatchObject({
      name: 'greet',
      input: { name: 'Ada' },
      status: 'queued',
      priority: 0,
      deduplication: null,
      schedule: name,
      scheduledFor: at(1),
    })
    expect(await row(ctx)).toMatchObject({
      target,
      doneUntil: at(1),
      lastDueAt: at(1),
      lastJobId: run?.jobId,
    })
  })

  it('makes a job for each due time, also while one of it is open, and none twice', async () => {
    const urls = await newDatabases()
    const workers = await Promise.all([openContext(urls), openContext(urls), openContext(urls)])
    const [first] = workers
    if (!first) throw new Error('no worker')
    await declare(first, { target })
    const asks = workers.map(async (worker, i) => {
      for (let minute = 1; minute <= 20; minute++)
        await lookForJobs(worker, at(minute + [0, 7, -3][i]!), greet)
    })
    await Promise.all(asks)
    expect(await times(first)).toEqual(Array.from({ length: 27 }, (_, i) => i + 1))
  })

  it.each(['schedule.moved', 'schedule.recorded'] as const)(
    'leaves nothing when it fails at %s',
    async (step) => {
      const ctx = await arrange({ target })
      const before = await row(ctx)
      watchSteps({
        steps: new Set([step]),
        reached() {
          throw new Error('the plug was pulled')
        },
      })
      expect(await lookForJobs(ctx, at(3), greet)).toEqual([])
      expect(await times(ctx)).toEqual([])
      expect(await row(ctx)).toEqual(before)
      watchSteps(undefined)
      await lookForJobs(ctx, at(3), greet)
      expect(await times(ctx)).toEqual([1, 2, 3])
    },
  )

  it('waits for a worker whose config has the job, and whose schema its input fits', async () => {
    const ctx = await arrange({ target })
    await lookForJobs(ctx, at(2))
    const batchOfThatName = { batches: new Map([['greet', { ...copy, name: 'greet' }]]), jobs: new Map() }
    await runSchedules(ctx, batchOfThatName, [name], { now: async () => at(2) })
    const strict = defineJob({ name: 'greet', input: z.object({ name: z.number() }), stage: () => null })
    await lookForJobs(ctx, at(2), strict)
    expect(await times(ctx)).toEqual([])
    await lookForJobs(ctx, at(2), greet)
    expect(await times(ctx)).toEqual([1, 2])
  })

  it('goes on where it was when it enqueues something else', async () => {
    const ctx = await arrange()
    await look(ctx, at(2))
    await declare(ctx, { target }, at(9))
    await lookForJobs(ctx, at(4), greet)
    expect(await dueTimes(ctx)).toEqual([1, 2])
    expect(await times(ctx)).toEqual([3, 4])
  })
})
