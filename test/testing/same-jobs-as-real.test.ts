import { UnrecoverableError } from 'bullmq'
import { expect, it, onTestFinished } from 'vitest'
import { z } from 'zod'
import { deferred } from '../../src/db/deferred.ts'
import type { Job } from '../../src/db/jobs.ts'
import type { Tx } from '../../src/db/tx.ts'
import { defineJob, type JobDefinition } from '../../src/jobs/job-definition.ts'
import { RetryLater } from '../../src/jobs/retry.ts'
import { type FakeHoldfast, fakeHoldfast } from '../../src/testing/index.ts'
import { createHoldfast, type Holdfast } from '../../src/workers/holdfast.ts'
import { newDatabases, openContext } from '../support/database.ts'
import { settle } from '../support/fake-clock.ts'
import { JobProcess } from '../support/jobs.ts'
import { type See, tell } from '../support/stories.ts'

process.env.LOG_LEVEL = 'silent'

/** What both can do, and how a test makes time pass and a run die. */
type Either = Pick<Holdfast, keyof FakeHoldfast & keyof Holdfast> & {
  /** the job's time has come: it is delivered once */
  run(jobId: string): Promise<Job | undefined>
  /** the process that is at the effects of this job */
  dies(jobId: string): Promise<void>
}
type Story = (open: (...jobs: JobDefinition[]) => Promise<Either>, see: See) => unknown

const long = { backoffMs: 3_600_000, maxBackoffMs: 3_600_000 }
const coded = (code: string) => Object.assign(new Error('of the database'), { code })
const plain = (context: object) => ({
  ...context,
  log: null,
  signal: null,
  tx: null,
  txs: null,
  publish: null,
})

/** Each is told to the real one and to the fake; what every step returned or threw has to be the same. */
const stories: Record<string, Story> = {
  async 'a job from its input to its result'(open, see) {
    const place = defineJob({
      name: 'place',
      input: z.object({ at: z.string().transform((text) => new Date(text)) }),
      participants: ['primary', 'billing'],
      async stage(context) {
        await see(plain(context))
        await see({ same: context.tx === context.txs.primary })
        await context.tx`select 1`
        await context.txs.billing`select 1`
        await see({ published: (await context.publish([{ type: 'x' }, { type: 'y' }])).length })
        return { at: context.input.at, gone: undefined }
      },
      async effects(context) {
        await see(plain(context))
        await see({ ofTheJob: context.idempotencyKey === `job:${context.jobId}` })
        await see(hf.jobs.get(context.jobId))
        return { receipt: context.staged.at, gone: undefined }
      },
    })
    const hf = await open(place)
    const options = { priority: 3, correlationId: 'trip' }
    const { jobId } = await hf.enqueue(place, { at: '2026-01-01T00:00:00.000Z' }, options)
    await see(hf.jobs.get(jobId))
    await see(hf.run(jobId))
    await see(hf.jobs.wait({ jobId }))
    await see(hf.jobs.list({ name: 'place', status: 'completed' }))
    await see(hf.outcome(`job:${jobId}`))
    await see(hf.listDistributed({ status: 'committed' }))
    await see(hf.run(jobId))
    await see(hf.jobs.retry(jobId))
    await see(hf.jobs.cancel(jobId))
  },
  async 'what is refused'(open, see) {
    const hf = await open(
      defineJob({ name: 'place', input: z.object({ id: z.number() }), stage: () => 1 }),
      defineJob({
        name: 'elsewhere',
        participants: ['billing'],
        stage: async ({ publish }) => {
          await publish({ type: 'x' })
        },
      }),
    )
    await see(hf.enqueue('nothing', null))
    await see(hf.enqueue({ name: 'nothing' }, null))
    await see(hf.enqueue('place', { id: 'x' }))
    await see(hf.enqueue('place', { id: 1n }))
    await see(hf.enqueue('place', undefined))
    for (const options of [{ delayMs: -1 }, { priority: 1.5 }, { deduplication: { id: '' } }])
      await see(hf.enqueue('place', { id: 1 }, options))
    await see(hf.enqueue('place', { id: 1 }, { tx: {} as never }))
    const pool = { totalCount: 1, query: async () => [] }
    await see(hf.enqueue('place', { id: 1 }, { tx: pool }))
    const enqueue = (tx: Tx) => hf.enqueue('place', { id: 1 }, { tx })
    await see(hf.beginDistributed('a', { billing: enqueue }))
    for (const call of ['retry', 'cancel', 'wait', 'get'] as const) await see(hf.jobs[call]('nothing'))
    await see(hf.jobs.list())
    const { jobId } = await hf.enqueue('elsewhere', null)
    await see(hf.run(jobId))
  },
  async 'an input that does not fit any more'(open, see) {
    let schema = z.object({ id: z.number() })
    const input = {
      '~standard': { ...schema['~standard'], validate: (v: unknown) => schema['~standard'].validate(v) },
    }
    const hf = await open(
      defineJob({ name: 'place', input: input as typeof schema, stage: () => see('staged') }),
    )
    const { jobId } = await hf.enqueue('place', { id: 1 })
    schema = z.object({ id: z.number().min(2) })
    await see(hf.run(jobId))
    await see(hf.listDistributed({ status: 'rolled_back' }))
  },
  async 'what is thrown'(open, see) {
    const errors: (() => unknown)[] = [
      () => new RetryLater(3_600_000),
      () => new RetryLater(0),
      () => new UnrecoverableError('never'),
      () => new Error('once'),
      () => 'no error',
      () => coded('55P03'),
      () => coded('ECONNRESET'),
      () => coded('23505'),
    ]
    const inStage = defineJob({
      name: 'in-stage',
      retry: long,
      stage: ({ input }) => Promise.reject(errors[input as number]?.()),
    })
    const inEffects = defineJob({
      name: 'in-effects',
      retry: long,
      stage: () => 1,
      effects: ({ input }) => Promise.reject(errors[input as number]?.()),
    })
    const hf = await open(inStage, inEffects)
    for (const { name } of [inStage, inEffects]) {
      for (const i of errors.keys()) {
        const { jobId } = await hf.enqueue(name, i)
        await see(hf.run(jobId))
      }
    }
    await see(hf.jobs.list({ status: 'failed', limit: 2 }))
  },
  async 'contention again and again'(open, see) {
    const hf = await open(
      defineJob({ name: 'busy', retry: long, stage: () => Promise.reject(coded('55P03')) }),
    )
    const { jobId } = await hf.enqueue('busy', null)
    for (let run = 0; run < 22; run++) await see(hf.run(jobId))
  },
  async 'effects that fail, with a compensation'(open, see) {
    const charged: string[] = []
    let works = false
    const place = defineJob({
      name: 'place',
      retry: { attempts: 2, ...long },
      stage: () => ({ at: new Date(0) }),
      async effects({ idempotencyKey, jobId }) {
        charged.push(idempotencyKey)
        await see({ ofTheJob: idempotencyKey === `job:${jobId}` })
        if (!works) throw new Error('card refused')
        return 'ok'
      },
      async compensate(context) {
        const { effectsKey, idempotencyKey } = context
        await see(plain({ ...context, effectsKey: charged.indexOf(effectsKey) }))
        await see({ ownKey: idempotencyKey === `${effectsKey}:compensate` })
      },
    })
    const hf = await open(place)
    const { jobId } = await hf.enqueue('place', { order: 1 })
    await see(hf.run(jobId))
    await see(hf.run(jobId))
    await see(hf.run(jobId))
    await see({ keys: new Set(charged).size })
    works = true
    await see(hf.jobs.retry(jobId))
    await see(hf.jobs.get(jobId))
    await see(hf.run(jobId))
    await see(hf.listDistributed({ status: 'rolled_back' }))
    await see(hf.listDistributed({ status: 'committed' }))
  },
  async 'a compensation that fails before it succeeds'(open, see) {
    let [refunds, staged] = [0, 0]
    const place = defineJob({
      name: 'place',
      retry: long,
      stage: () => void staged++,
      effects() {
        if (staged === 1) throw new Error('card refused')
      },
      compensate() {
        if (++refunds <= 3) throw new Error('refund service down')
      },
    })
    const hf = await open(place)
    const { jobId } = await hf.enqueue('place', null)
    for (let run = 0; run < 5; run++) {
      await see(hf.run(jobId))
      await see({ refunds, staged })
    }
  },
  async 'a compensation that is given up'(open, see) {
    let works = false
    const place = defineJob({
      name: 'place',
      retry: long,
      stage: () => 1,
      effects() {
        if (!works) throw new Error('card refused')
      },
      compensate: () => Promise.reject(new Error('refund service down')),
    })
    const hf = await open(place)
    const { jobId } = await hf.enqueue('place', null)
    for (let run = 0; run < 9; run++) await hf.run(jobId)
    for (let run = 0; run < 3; run++) await see(hf.run(jobId))
    await see(hf.listDistributed())
    await see(hf.outcome(`job:${jobId}`))
    works = true
    await see(hf.jobs.retry(jobId))
    await see(hf.run(jobId))
  },
  async 'what is cancelled'(open, see) {
    let meddle: (jobId: string) => unknown = () => undefined
    const place = defineJob({
      name: 'place',
      retry: { attempts: 1 },
      stage: async ({ input, jobId }) => {
        if (input === 'stage') await meddle(jobId)
      },
      async effects({ input, jobId }) {
        if (input === 'fails') throw new Error('card refused')
        if (input !== 'stage') await meddle(jobId)
        if (input === 'effects that throw') throw new Error('stopped')
      },
      compensate: (context) => see(plain({ ...context, effectsKey: null })),
    })
    let parsed: () => unknown = () => undefined
    const slow = defineJob({
      name: 'slow',
      input: z.string().refine(async () => (await parsed(), true)),
      stage: () => see('staged'),
      effects: () => see('never'),
    })
    const hf = await open(place, slow)
    const queued = await hf.enqueue('place', 'queued', { delayMs: 3_600_000 })
    for (const call of ['cancel', 'cancel', 'retry', 'wait'] as const) await see(hf.jobs[call](queued.jobId))
    await see(hf.run(queued.jobId))
    const failing = await hf.enqueue('place', 'fails')
    await see(hf.run(failing.jobId))
    for (const call of ['cancel', 'retry', 'get'] as const) await see(hf.jobs[call](failing.jobId))
    meddle = (jobId) => see(hf.jobs.cancel(jobId))
    for (const input of ['stage', 'effects', 'effects that throw']) {
      const { jobId } = await hf.enqueue('place', input)
      await see(hf.run(jobId))
      await see(hf.outcome(`job:${jobId}`))
    }
    const { jobId } = await hf.enqueue('slow', 'a')
    parsed = () => see(hf.jobs.cancel(jobId))
    await see(hf.run(jobId))
    meddle = (jobId) => see(hf.jobs.retry(jobId))
    await see(hf.run((await hf.enqueue('place', 'effects')).jobId))
    meddle = (jobId) => see(hf.run(jobId))
    await see(hf.run((await hf.enqueue('place', 'effects')).jobId))
    meddle = (jobId) => see(hf.rollbackDistributed(`job:${jobId}`, 'by hand'))
    await see(hf.run((await hf.enqueue('place', 'effects')).jobId))
  },
  async 'what is enqueued in a transaction'(open, see) {
    const hf = await open(defineJob({ name: 'place', stage: () => 1 }))
    const listed = async () => see((await hf.jobs.list()).map(({ input, status }) => ({ input, status })))
    const enqueue = (input: string) => async (tx: Tx) => {
      await see(hf.enqueue('place', input, { tx, delayMs: 3_600_000, priority: 7 }))
    }
    for (const end of ['commitDistributed', 'rollbackDistributed'] as const) {
      await see(hf.beginDistributed(end, enqueue(end)))
      await listed()
      await see(hf[end](end))
      await listed()
    }
    await see(
      hf.beginDistributed('a', async (tx) => {
        const undone = tx.savepoint(async (inner) => {
          await enqueue('undone')(inner)
          throw new Error('undone')
        })
        await see(undone)
        await enqueue('kept')(tx)
      }),
    )
    await see(hf.commitDistributed('a'))
    await see(
      hf.beginDistributed('b', async (tx) => {
        await enqueue('never')(tx)
        throw new Error('own')
      }),
    )
    await listed()
  },
  async deduplication(open, see) {
    let fails = true
    const place = defineJob({
      name: 'place',
      retry: { attempts: 1 },
      effects: () => {
        if (fails) throw new Error('card refused')
      },
      stage: () => 1,
    })
    const hf = await open(place, defineJob({ name: 'other', stage: () => 1 }))
    const deduplication = { id: 'customer-7' }
    const met: string[] = []
    const enqueue = (name: string, id: string) => hf.enqueue(name, null, { deduplication: { id } })
    const meet = async (name: string, id = 'customer-7', enqueued = enqueue(name, id)) => {
      const { jobId } = await enqueued
      if (!met.includes(jobId)) met.push(jobId)
      await see({ met: met.indexOf(jobId) })
      return jobId
    }
    const first = await meet('place')
    await meet('place')
    await meet('place', 'customer-8')
    await meet('other')
    await see(hf.run(first))
    const second = await meet('place')
    await see(hf.jobs.retry(first))
    await see(hf.jobs.cancel(second))
    await see(hf.jobs.retry(first))
    await meet('place')
    fails = false
    await see(hf.run(first))
    // As in PostgreSQL, whoever comes to one of a transaction that is not decided waits for that.
    for (const end of ['rollbackDistributed', 'commitDistributed'] as const) {
      await see(
        hf.beginDistributed(end, async (tx) => {
          const one = await hf.enqueue('place', null, { tx, deduplication })
          const same = await hf.enqueue('place', null, { tx, deduplication })
          met.push(one.jobId)
          await see({ same: one.jobId === same.jobId })
        }),
      )
      const waiting = enqueue('place', 'customer-7')
      await settle()
      await see(hf[end](end))
      await meet('place', 'customer-7', waiting)
      if (end === 'rollbackDistributed') await see(hf.jobs.cancel(met.at(-1) ?? ''))
    }
  },
  async 'runs that die'(open, see) {
    const keys: string[] = []
    const dying = (name: string) => ({
      name,
      stage: async ({ input }: { input: unknown }) => {
        await see('staged')
        return input
      },
      async effects({
        idempotencyKey,
        jobId,
        staged,
      }: {
        idempotencyKey: string
        jobId: string
        staged: unknown
      }) {
        keys.push(idempotencyKey)
        await see({ staged, again: keys.filter((key) => key === idempotencyKey).length })
        if (keys.filter((key) => key === idempotencyKey).length > 1) return 'done'
        await hf.dies(jobId)
        return deferred<string>().promise
      },
    })
    const hf: Either = await open(
      defineJob(dying('without')),
      defineJob({ ...dying('with'), compensate: () => see('never') }),
    )
    for (const name of ['without', 'with']) {
      const { jobId } = await hf.enqueue(name, { a: 1 })
      await see(hf.run(jobId))
      await see(hf.jobs.get(jobId))
      await see(hf.outcome(`job:${jobId}`))
      await see(hf.run(jobId))
      await see(hf.listDistributed({ status: 'committed', limit: 1 }))
    }
    const { jobId } = await hf.enqueue('without', null)
    await see(hf.run(jobId))
    await see(hf.jobs.cancel(jobId))
    await see(hf.run(jobId))
  },
}

/** The real one, without queues: the test delivers, to the next process when one has died. */
async function openReal(...jobs: JobDefinition[]): Promise<Either> {
  const databases = await newDatabases({ billing: 'west' })
  const hf = await createHoldfast({ databases, jobs, migrate: true })
  onTestFinished(() => hf.close())
  const newProcess = async () => new JobProcess(await openContext(databases), jobs)
  let process = await newProcess()
  let died = deferred<never>()
  const others = {
    async run(jobId: string) {
      const { sql } = process.ctx.databases.primary
      await sql`update holdfast.jobs set run_at = clock_timestamp() where id = ${jobId} and status = 'queued'`
      await sql`update holdfast.distributed_transactions set compensate_after = clock_timestamp()`
      died.promise.catch(() => undefined)
      await Promise.race([process.run(jobId), died.promise])
      return hf.jobs.get(jobId)
    },
    async dies(jobId: string) {
      await process.expireLease()
      process = await newProcess()
      died.reject(new Error(`the run of job:${jobId} has crashed, as the test wanted`))
      died = deferred<never>()
    },
  }
  return new Proxy(hf as unknown as Either, {
    get: (target, key) => {
      if (key in others) return others[key as keyof typeof others]
      const value: unknown = Reflect.get(target, key, target)
      return typeof value === 'function' ? value.bind(target) : value
    },
  })
}

async function openFake(...jobs: JobDefinition[]): Promise<Either> {
  const fake = fakeHoldfast({ participants: ['billing'], jobs })
  return Object.assign(fake, {
    run: (jobId: string) => fake.runJob(jobId),
    dies: async (jobId: string) => fake.crash(`job:${jobId}`),
  })
}

it.each(Object.entries(stories))('the fake does what the real one does: %s', async (_name, story) => {
  const told = await tell((see) => story(openReal, see))
  expect(await tell((see) => story(openFake, see))).toEqual(told)
  expect(told.length).toBeGreaterThan(1)
})
