import { UnrecoverableError } from 'bullmq'
import { Client, Pool } from 'pg'
import postgres from 'postgres'
import { describe, expect, it, onTestFinished, vi } from 'vitest'
import { z } from 'zod'
import { deferred } from '../../src/db/deferred.ts'
import { NoConnectionsError, NoSlotsError } from '../../src/db/errors.ts'
import { listDueJobs } from '../../src/db/jobs.ts'
import { removeOld } from '../../src/db/retention.ts'
import { watchSteps } from '../../src/db/steps.ts'
import type { Tx } from '../../src/db/tx.ts'
import { beginDistributed } from '../../src/jobs/begin.ts'
import { compensatedByHand } from '../../src/jobs/by-hand.ts'
import { compensate, dueCompensations } from '../../src/jobs/compensate.ts'
import { commitDistributed, rollbackDistributed } from '../../src/jobs/coordinator.ts'
import type { EnqueueOptions } from '../../src/jobs/enqueue-job.ts'
import { cancelJob, retryJob, waitForJob } from '../../src/jobs/job-control.ts'
import { defineJob, type JobDefinition } from '../../src/jobs/job-definition.ts'
import { recover } from '../../src/jobs/recovery.ts'
import { RetryLater } from '../../src/jobs/retry.ts'
import { runJob } from '../../src/jobs/run-job.ts'
import { type JobProcess, newJobProcesses } from '../support/jobs.ts'
import { preparedGids } from '../support/prepared-gids.ts'

const signal = new AbortController().signal
const order = async ({ tx }: { tx: Tx }) => {
  await tx`insert into orders values (1)`
}
const quick = { attempts: 2, backoffMs: 1, maxBackoffMs: 2 }

/** Runs whatever is delivered until a step is reached, and stays there until it is let go. */
function holdAt(step: 'begin.pending' | 'job.committed' | 'run.effects-done' | 'job.claimed') {
  const [arrived, held] = [deferred<void>(), deferred<void>()]
  watchSteps({
    steps: new Set([step]),
    reached: async () => {
      watchSteps(undefined)
      arrived.resolve()
      await held.promise
    },
  })
  onTestFinished(() => watchSteps(undefined))
  return { arrived: arrived.promise, letGo: () => held.resolve() }
}

/** A process that died in the effects of this job: its transaction is pending, its lease over, its call never returns. */
async function diesInEffects(process: JobProcess, definition: JobDefinition, jobId: string): Promise<void> {
  const entered = deferred<void>()
  const hanging: JobDefinition = {
    ...definition,
    effects: () => {
      entered.resolve()
      return new Promise(() => undefined)
    },
  }
  const definitions = new Map([[definition.name, hanging]])
  void runJob({ ...process.runner, definitions }, { id: jobId, name: definition.name }, signal)
  await entered.promise
  await process.expireLease()
}

describe('a job', () => {
  it('stages its work in a transaction named after it, and completes', async () => {
    const stage = vi.fn(
      async ({ tx, publish }: { tx: Tx; publish: (event: { type: string }) => unknown }) => {
        await tx`insert into orders values (1)`
        await publish({ type: 'order.placed' })
      },
    )
    const [one] = await newJobProcesses([defineJob({ name: 'place', stage })])
    const jobId = await one.enqueue('place', { total: 7 })
    expect(jobId).toMatch(/^place-[0-9a-f-]{36}$/)
    expect(await one.job(jobId)).toMatchObject({
      status: 'queued',
      attempts: 0,
      startedAt: null,
      priority: 0,
    })
    expect(await one.run(jobId)).toBe('completed')
    expect(stage).toHaveBeenCalledWith(expect.objectContaining({ input: { total: 7 }, jobId }))
    expect(await waitForJob(one.ctx, jobId)).toMatchObject({
      status: 'completed',
      result: null,
      attempts: 0,
      errors: [],
      finishedAt: expect.any(Date),
    })
    expect(await one.transactions(jobId)).toEqual(['committed'])
    expect(await one.orders()).toEqual([1])
    expect(await one.ctx.databases.primary.sql`select type from holdfast.outbox`).toEqual([
      { type: 'order.placed' },
    ])
    // Delivered once more, it is what it is.
    expect(await one.run(jobId)).toBe('not-ours')
    expect(await one.orders()).toEqual([1])
  })

  it('stages on several databases in one function, then has its effects, and keeps what they return', async () => {
    const seen: unknown[] = []
    const place = defineJob({
      name: 'place',
      input: z.object({ at: z.string().transform((text) => new Date(text)) }),
      participants: ['primary', 'billing'],
      async stage({ tx, txs, input }) {
        expect(txs.primary).toBe(tx)
        await tx`insert into orders values (1)`
        await txs.billing`insert into orders values (1)`
        return { at: input.at, note: undefined }
      },
      effects({ staged, input, idempotencyKey }) {
        seen.push(staged, input, idempotencyKey)
        return { charge: 7 }
      },
    })
    const [one] = await newJobProcesses([place], { billing: 'west' })
    const jobId = await one.enqueue('place', { at: '2026-01-01T00:00:00.000Z' })
    expect(await one.run(jobId)).toBe('completed')
    // Staged values have taken the way through JSON; the input is stored as it was given, and parsed by the run.
    expect(seen).toEqual([{ at: '2026-01-01T00:00:00.000Z' }, { at: new Date('2026-01-01') }, `job:${jobId}`])
    expect(await one.job(jobId)).toMatchObject({
      input: { at: '2026-01-01T00:00:00.000Z' },
      result: { charge: 7 },
    })
    expect(await one.orders()).toEqual([1, 1])
  })

  it('that fails in one database leaves nothing in any', async () => {
    const place = defineJob({
      name: 'place',
      participants: ['primary', 'billing'],
      async stage({ txs }) {
        await txs.primary`insert into orders values (1)`
        await txs.billing`insert into nowhere values (1)`
      },
    })
    const [one] = await newJobProcesses([place], { billing: 'west' })
    const jobId = await one.enqueue('place')
    expect(await one.run(jobId)).toBe('failed')
    expect((await one.job(jobId)).errors).toMatchObject([{ sqlstate: '42P01', attempt: 1 }])
    expect(await one.orders()).toEqual([0, 0])
    expect(await preparedGids(one.ctx)).toEqual([])
  })
})

describe('enqueueing', () => {
  it('in a transaction: the job exists exactly if that commits', async () => {
    const [one] = await newJobProcesses([defineJob({ name: 'place', stage: order })])
    const { url, sql } = one.ctx.databases.primary
    const count = async () => (await sql`select 1 from holdfast.jobs`).length
    const driver = postgres(url, { max: 1, onnotice: () => undefined })
    const client = new Client({ connectionString: url })
    await client.connect()
    onTestFinished(() => client.end())
    onTestFinished(() => driver.end())

    const undone = driver.begin(async (tx) => {
      await one.enqueue('place', null, { tx })
      throw new Error('changed my mind')
    })
    await expect(undone).rejects.toThrow('changed my mind')
    await client.query('begin')
    await one.enqueue('place', null, { tx: client })
    await client.query('rollback')
    await beginDistributed(one.ctx, 'undone', (tx) => one.enqueue('place', null, { tx }))
    await rollbackDistributed(one.ctx, 'undone', 'test')
    expect(await count()).toBe(0)

    await driver.begin(async (tx) => one.enqueue('place', null, { tx }))
    await client.query('begin')
    const jobId = await one.enqueue('place', { a: 1 }, { tx: client })
    await client.query('commit')
    await beginDistributed(one.ctx, 'done', (tx) => one.enqueue('place', null, { tx }))
    expect(await count()).toBe(2)
    await commitDistributed(one.ctx, 'done')
    expect(await count()).toBe(3)
    expect(await one.run(jobId)).toBe('completed')

    const pool = new Pool({ connectionString: url })
    onTestFinished(() => pool.end())
    await expect(one.enqueue('place', null, { tx: pool })).rejects.toMatchObject({
      code: 'HOLDFAST_INVALID_PAYLOAD',
    })
  })

  it('checks what it is given before it writes anything', async () => {
    const place = defineJob({ name: 'place', input: z.object({ id: z.number() }), stage: order })
    const [one] = await newJobProcesses([place])
    await expect(one.enqueue('place', { id: 'x' })).rejects.toMatchObject({
      code: 'HOLDFAST_INVALID_PAYLOAD',
    })
    await expect(one.enqueue('place', { id: 1n })).rejects.toMatchObject({ code: 'HOLDFAST_INVALID_PAYLOAD' })
    for (const options of [{ delayMs: -1 }, { priority: 1.5 }, { deduplication: { id: '' } }])
      await expect(one.enqueue('place', { id: 1 }, options)).rejects.toMatchObject({
        code: 'HOLDFAST_INVALID_CONFIG',
      })
    expect(await one.ctx.databases.primary.sql`select 1 from holdfast.jobs`).toEqual([])
  })

  it('with a delay: nobody runs it before', async () => {
    const [one] = await newJobProcesses([defineJob({ name: 'place', stage: order })])
    const jobId = await one.enqueue('place', null, { delayMs: 3_600_000 })
    const { sql } = one.ctx.databases.primary
    expect(await listDueJobs(sql, ['place'], [], 10, one.ctx.lease.id)).toEqual([])
    expect(await one.run(jobId)).toBe('not-ours')
    expect(await retryJob(one.ctx, jobId)).toBe('queued')
    expect(await one.run(jobId)).toBe('completed')
  })

  it('by priority: what is due is listed in its order', async () => {
    const [one] = await newJobProcesses([defineJob({ name: 'place', stage: order })])
    const low = await one.enqueue('place', null, { priority: 9 })
    const high = await one.enqueue('place', null, { priority: 1 })
    const first = await one.enqueue('place')
    const due = await listDueJobs(one.ctx.databases.primary.sql, ['place'], [], 10, one.ctx.lease.id)
    expect(due.map(({ id }) => id)).toEqual([first, high, low])
  })

  it('with a deduplication id: one while it is open, a new one afterwards', async () => {
    const [one, two] = await newJobProcesses([defineJob({ name: 'place', stage: order })])
    const deduplication = { id: 'customer-7' }
    const ids = await Promise.all([one, two].map((p) => p.enqueue('place', null, { deduplication })))
    expect(ids[0]).toBe(ids[1])
    expect(await one.enqueue('place', null, { deduplication: { id: 'customer-8' } })).not.toBe(ids[0])
    expect(await one.run(ids[0] ?? '')).toBe('completed')
    expect(await one.enqueue('place', null, { deduplication })).not.toBe(ids[0])
  })
})

describe('delivered twice', () => {
  it('at once, to two processes and twice to each: one runs it', async () => {
    let [effects, at, most] = [0, 0, 0]
    const place = defineJob({
      name: 'place',
      stage: order,
      async effects({ idempotencyKey }) {
        most = Math.max(most, ++at)
        await one.ctx.databases.primary.sql`select ${idempotencyKey}::text, pg_sleep(0.1)`
        effects++
        at--
      },
    })
    const [one, two] = await newJobProcesses([place])
    const jobId = await one.enqueue('place')
    const outcomes = await Promise.all([one, two, one, two].map((process) => process.run(jobId)))
    expect(outcomes.toSorted()).toEqual(['completed', 'not-ours', 'not-ours', 'not-ours'])
    expect([effects, most, await one.orders()]).toEqual([1, 1, [1]])
    expect(await one.job(jobId)).toMatchObject({ status: 'completed', attempts: 0 })
  })

  it('to one that was taken for dead in its effects: the other goes on with the same key, and the first changes nothing', async () => {
    const keys: string[] = []
    const [entered, held] = [deferred<void>(), deferred<void>()]
    const place = defineJob({
      name: 'place',
      stage: order,
      async effects({ idempotencyKey }) {
        keys.push(idempotencyKey)
        if (keys.length > 1) return 'second'
        entered.resolve()
        await held.promise
        throw new Error('a zombie')
      },
      compensate: () => {
        throw new Error('a committed job is never compensated')
      },
    })
    const [one, two] = await newJobProcesses([place])
    const jobId = await one.enqueue('place')
    const zombie = one.run(jobId)
    await entered.promise
    expect(await two.run(jobId)).toBe('not-ours')
    await one.expireLease()
    expect(await two.run(jobId)).toBe('completed')
    held.resolve()
    expect(await zombie).toBe('completed')
    expect(new Set(keys).size).toBe(1)
    expect(await two.job(jobId)).toMatchObject({ status: 'completed', result: 'second', errors: [] })
    expect(await two.transactions(jobId)).toEqual(['committed'])
    expect(await two.orders()).toEqual([1])
    expect(await dueCompensations(two.ctx)).toEqual([])
  })

  it('to one that was taken for dead before its effects: they do not begin', async () => {
    let effects = 0
    const place = defineJob({ name: 'place', stage: order, effects: () => void effects++ })
    const [one, two] = await newJobProcesses([place])
    const jobId = await one.enqueue('place')
    const { arrived, letGo } = holdAt('begin.pending')
    const zombie = one.run(jobId)
    await arrived
    await one.expireLease()
    expect(await two.run(jobId)).toBe('completed')
    letGo()
    expect(await zombie).toBe('completed')
    expect([effects, await one.orders()]).toEqual([1, [1]])
  })

  it('to one whose lease comes back: the other steps back, and completes what the first has committed', async () => {
    const [one, two] = await newJobProcesses([defineJob({ name: 'place', stage: order })])
    const jobId = await one.enqueue('place')
    const first = holdAt('run.effects-done')
    const back = one.run(jobId)
    await first.arrived
    await one.expireLease()
    const second = holdAt('job.claimed')
    const other = two.run(jobId)
    await second.arrived
    await one.ctx.databases.primary.sql`
      update holdfast.workers set lease_until = clock_timestamp() + interval '1 minute' where id = ${one.ctx.lease.id}`
    second.letGo()
    expect(await other).toBe('queued')
    expect(await one.job(jobId)).toMatchObject({ status: 'queued', attempts: 0 })
    first.letGo()
    expect(await back).toBe('completed')
    expect(await one.job(jobId)).toMatchObject({ status: 'completed' })
    expect(await one.orders()).toEqual([1])
  })
})

describe('an attempt that fails', () => {
  it('is rolled back, compensated and tried again; then the job has failed, keeps its history and can be redriven', async () => {
    const [charged, undone]: [string[], string[]] = [[], []]
    let works = false
    const place = defineJob({
      name: 'place',
      input: z.object({ order: z.number() }),
      retry: quick,
      async stage({ tx }) {
        await tx`insert into orders values (1)`
        return { id: 5 }
      },
      effects({ idempotencyKey }) {
        charged.push(idempotencyKey)
        if (!works) throw new Error('card refused')
        return 'ok'
      },
      compensate({ effectsKey, staged, input, idempotencyKey, reason }) {
        expect([staged, input, reason]).toEqual([{ id: 5 }, { order: 1 }, 'card refused'])
        expect(idempotencyKey).toBe(`${effectsKey}:compensate`)
        undone.push(effectsKey)
      },
    })
    const [one] = await newJobProcesses([place])
    const jobId = await one.enqueue('place', { order: 1 })
    expect(await one.run(jobId)).toBe('queued')
    expect(await one.job(jobId)).toMatchObject({ status: 'queued', attempts: 1 })
    expect([charged.length, undone]).toEqual([1, charged])
    await one.due(jobId)
    expect(await one.run(jobId)).toBe('failed')
    expect(undone).toEqual(charged)
    // Taken back, so the next attempt is another charge.
    expect(new Set(charged).size).toBe(2)
    expect(await one.transactions(jobId)).toEqual(['rolled_back', 'rolled_back'])
    const at = expect.stringMatching(/^\d{4}-\d\d-\d\dT/)
    const failure = { message: 'card refused', sqlstate: null, at }
    expect((await one.job(jobId)).errors).toEqual([
      { ...failure, attempt: 1 },
      { ...failure, attempt: 2 },
    ])
    expect(await one.run(jobId)).toBe('not-ours')

    works = true
    expect(await retryJob(one.ctx, jobId)).toBe('queued')
    expect(await one.run(jobId)).toBe('completed')
    expect(await one.job(jobId)).toMatchObject({ status: 'completed', result: 'ok', attempts: 2 })
    expect((await one.job(jobId)).errors).toHaveLength(2)
    expect([await one.orders(), undone.length]).toEqual([[1], 2])
    await expect(retryJob(one.ctx, jobId)).rejects.toMatchObject({ code: 'HOLDFAST_WRONG_JOB_STATE' })
    await expect(retryJob(one.ctx, 'nothing')).rejects.toMatchObject({ code: 'HOLDFAST_UNKNOWN_JOB' })
  })

  it('without a compensation keeps one key for the whole job: nobody takes back what it did under another', async () => {
    const keys: string[] = []
    const place = defineJob({
      name: 'place',
      retry: quick,
      stage: order,
      effects({ idempotencyKey }) {
        keys.push(idempotencyKey)
        if (keys.length === 1) throw new Error('no answer')
      },
    })
    const [one] = await newJobProcesses([place])
    const jobId = await one.enqueue('place')
    expect(await one.run(jobId)).toBe('queued')
    await one.due(jobId)
    expect(await one.run(jobId)).toBe('completed')
    expect(keys).toEqual([`job:${jobId}`, `job:${jobId}`])
  })

  it('is not followed by another while what it did outside is not undone', async () => {
    let [refunds, staged] = [0, 0]
    const place = defineJob({
      name: 'place',
      retry: { ...quick, attempts: 3 },
      stage: () => void staged++,
      effects() {
        if (staged === 1) throw new Error('card refused')
      },
      compensate() {
        if (++refunds <= 2) throw new Error('refund service down')
      },
    })
    const [one] = await newJobProcesses([place])
    const jobId = await one.enqueue('place')
    expect(await one.run(jobId)).toBe('queued')
    expect(refunds).toBe(1)
    const { sql } = one.ctx.databases.primary
    const compensationIsDue = () =>
      sql`update holdfast.distributed_transactions set compensate_after = clock_timestamp()`
    // Its pause is over when the test says so.
    await sql`update holdfast.distributed_transactions set compensate_after = compensate_after + interval '1 hour'`
    for (const expected of [1, 2]) {
      await one.due(jobId)
      expect(await one.run(jobId)).toBe('queued')
      expect([refunds, staged]).toEqual([expected, 1])
      await compensationIsDue()
    }
    expect(await one.job(jobId)).toMatchObject({ attempts: 1 })
    await one.due(jobId)
    expect(await one.run(jobId)).toBe('completed')
    expect([refunds, staged]).toEqual([3, 2])
  })

  it('fails the job where its compensation failed for good, until somebody has undone it by hand', async () => {
    let charged = false
    const place = defineJob({
      name: 'place',
      retry: quick,
      stage: order,
      effects: () => (charged ? null : Promise.reject(new Error('card refused'))),
      compensate: () => Promise.reject(new Error('refund service down')),
    })
    const [one] = await newJobProcesses([place])
    const jobId = await one.enqueue('place')
    expect(await one.run(jobId)).toBe('queued')
    await one.ctx.databases.primary.sql`update holdfast.distributed_transactions set compensation = 'failed'`
    await one.due(jobId)
    expect(await one.run(jobId)).toBe('failed')
    expect((await one.job(jobId)).errors[1]?.message).toMatch(/not undone.*failed for good.*tx show/)
    // Somebody refunds the card by hand and says so; the service stays as it is.
    const name = `job:${jobId}`
    expect(await compensatedByHand(one.ctx, name, 'olivia', 'refunded by phone')).toBe(true)
    expect(await compensatedByHand(one.ctx, name, 'olivia', 'once more')).toBe(false)
    charged = true
    expect(await retryJob(one.ctx, jobId)).toBe('queued')
    expect(await one.run(jobId)).toBe('completed')
    expect(await one.transactions(jobId)).toEqual(['rolled_back', 'committed'])
    expect(
      await one.ctx.databases.primary.sql`
      select actor like '%/olivia' as hers, detail from holdfast.transaction_events
      where name = ${name} and event = 'compensated_by_hand'`,
    ).toEqual([{ hers: true, detail: { why: 'refunded by phone', was: 'refund service down' } }])
  })

  it.each([
    ['slot', () => new NoSlotsError('none is free')],
    ['connection', () => new NoConnectionsError('none is free')],
  ])('for want of a %s never fails the job, however often', async (_what, error) => {
    let times = 0
    const place = defineJob({
      name: 'place',
      retry: { attempts: 1 },
      stage: () => (++times <= 30 ? Promise.reject(error()) : null),
    })
    const [one] = await newJobProcesses([place])
    const jobId = await one.enqueue('place')
    for (let round = 0; round < 30; round++) {
      expect(await one.run(jobId)).toBe('queued')
      await one.due(jobId)
    }
    expect(await one.job(jobId)).toMatchObject({ attempts: 0, errors: [] })
    expect(await one.run(jobId)).toBe('completed')
  })

  it.each<[string, () => unknown, Record<string, unknown>]>([
    [
      'RetryLater charges nothing',
      () => new RetryLater(3_600_000),
      { status: 'queued', attempts: 0, errors: [] },
    ],
    ['UnrecoverableError ends it', () => new UnrecoverableError('never'), { status: 'failed', attempts: 1 }],
    ['another error charges an attempt', () => new Error('once'), { status: 'queued', attempts: 1 }],
  ])('thrown in stage and in effects: %s', async (_what, error, expected) => {
    const throwing = () => Promise.reject(error())
    const inStage = defineJob({ name: 'in-stage', retry: quick, stage: throwing })
    const inEffects = defineJob({ name: 'in-effects', retry: quick, stage: order, effects: throwing })
    const [one] = await newJobProcesses([inStage, inEffects])
    for (const name of ['in-stage', 'in-effects']) {
      const jobId = await one.enqueue(name)
      await one.run(jobId)
      const job = await one.job(jobId)
      expect(job).toMatchObject(expected)
      if (expected.attempts === 0) expect(job.runAt.getTime()).toBeGreaterThan(Date.now() + 3_000_000)
      expect(await preparedGids(one.ctx)).toEqual([])
    }
    expect(await one.orders()).toEqual([0])
  })

  it('by contention charges nothing, so many times in a row; by any other SQLSTATE the job has failed', async () => {
    const failing = (name: string, code: string) =>
      defineJob({
        name,
        retry: quick,
        async stage({ tx }) {
          await tx.unsafe(`do $$ begin raise exception 'x' using errcode = '${code}'; end $$`)
        },
      })
    const [one] = await newJobProcesses([failing('busy', '55P03'), failing('wrong', '23505')])
    const wrong = await one.enqueue('wrong')
    expect(await one.run(wrong)).toBe('failed')
    expect((await one.job(wrong)).errors).toMatchObject([{ sqlstate: '23505' }])
    const busy = await one.enqueue('busy')
    for (let run = 1; run <= 21; run++) {
      await one.due(busy)
      expect(await one.run(busy)).toBe('queued')
      expect((await one.job(busy)).attempts).toBe(run <= 20 ? 0 : 1)
    }
    expect((await one.job(busy)).errors).toMatchObject([{ sqlstate: '55P03', attempt: 1 }])
  })

  it('is written down in bounds: the newest twenty, none longer than a thousand characters', async () => {
    const place = defineJob({
      name: 'place',
      retry: { attempts: 30, backoffMs: 1, maxBackoffMs: 1 },
      stage: () => Promise.reject(new Error('x'.repeat(5_000))),
    })
    const [one] = await newJobProcesses([place])
    const jobId = await one.enqueue('place')
    for (let run = 0; run < 22; run++) {
      await one.due(jobId)
      await one.run(jobId)
    }
    const { errors } = await one.job(jobId)
    expect(errors.map(({ attempt }) => attempt)).toEqual(Array.from({ length: 20 }, (_, i) => i + 3))
    expect(errors[0]?.message).toHaveLength(1_000)
  })

  it('for an input that does not fit any more ends the job, and what an earlier run left pending is rolled back first', async () => {
    let schema = z.object({ id: z.number() })
    const input = {
      '~standard': { ...schema['~standard'], validate: (v: unknown) => schema['~standard'].validate(v) },
    }
    const place = defineJob({ name: 'place', input: input as typeof schema, stage: order })
    const [one, two] = await newJobProcesses([place])
    const jobId = await one.enqueue('place', { id: 1 })
    await diesInEffects(one, place, jobId)
    schema = z.object({ id: z.number().min(2) })
    expect(await two.run(jobId)).toBe('failed')
    expect(await two.transactions(jobId)).toEqual(['rolled_back'])
    expect([await two.orders(), await preparedGids(two.ctx)]).toEqual([[0], []])
  })
})

describe('a run that dies', () => {
  it('again and again ends the job, and what it left pending is rolled back first', async () => {
    const place = defineJob({ name: 'place', stage: order })
    const [one, two] = await newJobProcesses([place])
    const jobId = await one.enqueue('place')
    await diesInEffects(one, place, jobId)
    await one.ctx.databases.primary.sql`update holdfast.jobs set deferrals = 20`
    expect(await two.run(jobId)).toBe('failed')
    expect((await two.job(jobId)).errors[0]?.message).toContain('died 21 times')
    expect([await two.transactions(jobId), await two.orders()]).toEqual([['rolled_back'], [0]])
  })

  it('leaves what is past its deadline to the next one, not to recovery', async () => {
    const place = defineJob({ name: 'place', stage: order })
    const [one, two] = await newJobProcesses([place])
    const jobId = await one.enqueue('place')
    await diesInEffects(one, place, jobId)
    const { sql } = two.ctx.databases.primary
    await sql`update holdfast.distributed_transactions set deadline = clock_timestamp() - interval '1 second'`
    expect(await recover(two.ctx)).toMatchObject({ left: 1, rolledBack: 0 })
    expect(await two.run(jobId)).toBe('completed')
    expect(await two.transactions(jobId)).toEqual(['committed'])
  })

  it('where nobody knows the job any more is ended by its deadline', async () => {
    const place = defineJob({ name: 'place', stage: order })
    const [one, two] = await newJobProcesses([place])
    const jobId = await one.enqueue('place')
    await diesInEffects(one, place, jobId)
    two.ctx.operations.clear()
    const { sql } = two.ctx.databases.primary
    await sql`update holdfast.distributed_transactions set deadline = clock_timestamp() - interval '1 second'`
    expect(await recover(two.ctx)).toMatchObject({ left: 0, rolledBack: 1 })
  })

  it('between the commit and the row finds its name taken, however old it is', async () => {
    const [one, two] = await newJobProcesses([defineJob({ name: 'place', stage: order })])
    const jobId = await one.enqueue('place')
    const { arrived } = holdAt('job.committed')
    void one.run(jobId)
    await arrived
    await one.expireLease()
    const { primary } = two.ctx.databases
    await primary.sql`update holdfast.distributed_transactions set updated_at = updated_at - interval '1 year'`
    const removed = await primary.transaction((tx) =>
      removeOld(tx, { transactionsMs: 1_000, eventsMs: 1_000 }, 100),
    )
    expect(removed.transactions).toBe(0)
    expect(await two.run(jobId)).toBe('completed')
    expect(await two.orders()).toEqual([1])
  })
})

describe('a job is stopped', () => {
  it('by its timeout: the signal aborts, and the attempt has failed', async () => {
    const reasons: unknown[] = []
    const place = defineJob({
      name: 'place',
      retry: quick,
      timeoutMs: 200,
      stage: order,
      async effects({ signal }) {
        if (!signal.aborted) await new Promise((resolve) => signal.addEventListener('abort', resolve))
        reasons.push(signal.reason)
        signal.throwIfAborted()
      },
    })
    const [one] = await newJobProcesses([place])
    const jobId = await one.enqueue('place')
    expect(await one.run(jobId)).toBe('queued')
    expect(reasons).toMatchObject([{ message: 'the deadline is near' }])
    expect(await one.job(jobId)).toMatchObject({ attempts: 1 })
  })

  it('when the queue loses it: the signal aborts, and no attempt is charged', async () => {
    const entered = deferred<void>()
    const place = defineJob({
      name: 'place',
      retry: quick,
      stage: order,
      async effects({ signal }) {
        entered.resolve()
        await new Promise((resolve) => signal.addEventListener('abort', resolve))
        signal.throwIfAborted()
      },
    })
    const [one] = await newJobProcesses([place])
    const jobId = await one.enqueue('place')
    const lock = new AbortController()
    const run = one.run(jobId, lock.signal)
    await entered.promise
    lock.abort(new Error('its lock was lost'))
    expect(await run).toBe('queued')
    expect(await one.job(jobId)).toMatchObject({ status: 'queued', attempts: 0, errors: [] })
    expect(await preparedGids(one.ctx)).toEqual([])
  })

  it('by a cancel while it waits; one that has ended cannot be', async () => {
    const [one] = await newJobProcesses([defineJob({ name: 'place', stage: order })])
    const jobId = await one.enqueue('place')
    expect(await cancelJob(one.ctx, jobId)).toBe('cancelled')
    expect(await cancelJob(one.ctx, jobId)).toBe('cancelled')
    expect(await one.run(jobId)).toBe('not-ours')
    await expect(retryJob(one.ctx, jobId)).rejects.toMatchObject({ code: 'HOLDFAST_WRONG_JOB_STATE' })
    const done = await one.enqueue('place')
    await one.run(done)
    await expect(cancelJob(one.ctx, done)).rejects.toMatchObject({ code: 'HOLDFAST_WRONG_JOB_STATE' })
    await expect(cancelJob(one.ctx, 'nothing')).rejects.toMatchObject({ code: 'HOLDFAST_UNKNOWN_JOB' })
    expect(await one.orders()).toEqual([1])
  })

  it('by a cancel in its effects: they are told, all is rolled back, and they are compensated', async () => {
    const entered = deferred<void>()
    const undone: string[] = []
    const place = defineJob({
      name: 'place',
      stage: order,
      async effects({ signal, idempotencyKey }) {
        entered.resolve()
        await new Promise((resolve) => signal.addEventListener('abort', resolve))
        return idempotencyKey
      },
      compensate: ({ effectsKey }) => void undone.push(effectsKey),
    })
    const [one, two] = await newJobProcesses([place])
    const jobId = await one.enqueue('place')
    const run = one.run(jobId)
    await entered.promise
    expect(await cancelJob(two.ctx, jobId)).toBe('cancelling')
    expect(undone).toEqual([])
    await one.runner.running.look(one.ctx.databases.primary.sql, one.ctx.lease.id)
    expect(await run).toBe('cancelled')
    expect(undone).toHaveLength(1)
    expect([await one.transactions(jobId), await one.orders()]).toEqual([['rolled_back'], [0]])
    expect(await one.job(jobId)).toMatchObject({ status: 'cancelled', errors: [] })
  })

  it('by a cancel before its effects: they do not begin', async () => {
    let effects = 0
    const place = defineJob({ name: 'place', stage: order, effects: () => void effects++ })
    const [one, two] = await newJobProcesses([place])
    const jobId = await one.enqueue('place')
    const { arrived, letGo } = holdAt('job.claimed')
    const run = one.run(jobId)
    await arrived
    expect(await cancelJob(two.ctx, jobId)).toBe('cancelling')
    letGo()
    expect(await run).toBe('cancelled')
    expect([effects, await one.orders()]).toEqual([0, [0]])
  })

  it('by a cancel that comes too late: it has committed, and completes', async () => {
    const [one, two] = await newJobProcesses([defineJob({ name: 'place', stage: order })])
    const jobId = await one.enqueue('place')
    const { arrived } = holdAt('job.committed')
    void one.run(jobId)
    await arrived
    await one.expireLease()
    expect(await cancelJob(two.ctx, jobId)).toBe('cancelling')
    expect(await two.run(jobId)).toBe('completed')
    expect(await two.orders()).toEqual([1])
  })

  it('by a cancel after its worker died: rolled back at once, and compensated by whoever comes', async () => {
    const undone: string[] = []
    const place = defineJob({
      name: 'place',
      stage: order,
      effects: () => undefined,
      compensate: ({ effectsKey }) => void undone.push(effectsKey),
    })
    const [one, two] = await newJobProcesses([place])
    const jobId = await one.enqueue('place')
    await diesInEffects(one, place, jobId)
    expect(await cancelJob(two.ctx, jobId)).toBe('cancelled')
    expect([await two.orders(), await preparedGids(two.ctx)]).toEqual([[0], []])
    const [due] = await dueCompensations(two.ctx)
    expect(await compensate(two.ctx, due?.attempt ?? '', signal)).toBe('done')
    expect(undone).toHaveLength(1)
  })

  it('by its concurrency: one more is given back as it was', async () => {
    const held = deferred<void>()
    const entered = deferred<void>()
    const place = defineJob({
      name: 'place',
      concurrency: 1,
      stage: order,
      async effects() {
        entered.resolve()
        await held.promise
      },
    })
    const [one] = await newJobProcesses([place])
    const [first, second] = [await one.enqueue('place'), await one.enqueue('place')]
    const run = one.run(first)
    await entered.promise
    expect(await one.run(second)).toBe('not-ours')
    expect(await one.job(second)).toMatchObject({ status: 'queued', startedAt: null })
    held.resolve()
    expect(await run).toBe('completed')
    expect(await one.run(second)).toBe('completed')
  })

  it('by its concurrency: the first that is delivered has the room, whatever the server answers first', async () => {
    const place = defineJob({ name: 'place', concurrency: 1, stage: order })
    const [one] = await newJobProcesses([place])
    const [first, second] = [await one.enqueue('place'), await one.enqueue('place')]
    const runs = [first, second].map((id) => runJob(one.runner, { id, name: 'place' }, signal))
    // Nothing has been asked of the server yet.
    expect(one.runner.running.ids).toEqual([first])
    expect(await Promise.all(runs)).toEqual(['completed', 'not-ours'])
  })

  it('is not enqueued with an option that there is none of', async () => {
    const [one] = await newJobProcesses([defineJob({ name: 'place', stage: order })])
    const enqueued = one.enqueue('place', null, { dedupe: { id: 'a' } } as EnqueueOptions)
    await expect(enqueued).rejects.toThrow('no option dedupe; it has tx, delayMs, priority, deduplication')
    expect(await one.ctx.databases.primary.sql`select from holdfast.jobs`).toHaveLength(0)
  })

  it('is not run by a name that is not its own', async () => {
    const jobs = ['place', 'send'].map((name) => defineJob({ name, stage: order }))
    const [one] = await newJobProcesses(jobs)
    const id = await one.enqueue('place')
    expect(await runJob(one.runner, { id, name: 'send' }, signal)).toBe('not-ours')
    expect([await one.job(id), await one.orders()]).toMatchObject([{ status: 'queued' }, [0]])
  })
})

it('a redrive steps back for an open job with the same deduplication id', async () => {
  const place = defineJob({ name: 'place', stage: () => Promise.reject(new UnrecoverableError('no')) })
  const [one] = await newJobProcesses([place])
  const deduplication = { id: 'a' }
  const failed = await one.enqueue('place', null, { deduplication })
  expect(await one.run(failed)).toBe('failed')
  await one.enqueue('place', null, { deduplication })
  await expect(retryJob(one.ctx, failed)).rejects.toMatchObject({ code: 'HOLDFAST_WRONG_JOB_STATE' })
})

describe('defineJob', () => {
  it('says everything that is wrong', () => {
    const wrong = {
      name: 'Not a name',
      participants: ['primary', 'primary'],
      retry: { attempts: 0, backoffMs: -1 },
      timeoutMs: 0,
      concurrency: 0.5,
      compensate: () => undefined,
    }
    expect(() => defineJob(wrong as never)).toThrow(
      /name has[^]*stage is not[^]*compensate undoes[^]*participants names[^]*attempts is[^]*backoffMs[^]*timeoutMs[^]*concurrency/,
    )
  })
})
