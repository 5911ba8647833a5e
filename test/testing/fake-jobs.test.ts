import { describe, expect, it, vi } from 'vitest'
import { z } from 'zod'
import { deferred } from '../../src/db/deferred.ts'
import type { Tx } from '../../src/db/tx.ts'
import { defineJob } from '../../src/jobs/job-definition.ts'
import { RetryLater } from '../../src/jobs/retry.ts'
import { type FakeHoldfast, fakeHoldfast } from '../../src/testing/index.ts'

const code = (name: string) => expect.objectContaining({ code: `HOLDFAST_${name}` })
const provision = defineJob({
  name: 'provision-user',
  input: z.object({ email: z.string(), since: z.string().transform((text) => new Date(text)) }),
  async stage({ tx, input }) {
    await tx`insert into users values (${input.email}, ${input.since})`
    return { since: input.since }
  },
  effects: ({ staged }) => staged.since,
})
const input = { email: 'a', since: '2026-01-01' }
const note = (name: string, order: string[]) =>
  defineJob({ name, stage: ({ input }) => void order.push(`${name} ${String(input)}`) })

/** What must not compile; nothing here runs. */
export async function mistakes(tx: Tx): Promise<void> {
  const fake = fakeHoldfast({ jobs: [provision, defineJob({ name: 'sweep', stage: () => 1 })] })
  await fake.enqueue(provision, input, { tx, delayMs: 5, priority: 1, deduplication: { id: 'a' } })
  await fake.enqueue('sweep', { anything: 1 })
  // @ts-expect-error there is no such job
  await fake.enqueue('provision-usr', input)
  // @ts-expect-error since is missing
  await fake.enqueue('provision-user', { email: 'a' })
  // @ts-expect-error what goes in is text, not what the schema makes of it
  await fake.enqueue(provision, { ...input, since: new Date() })
  // @ts-expect-error the fake has no such job
  await fake.enqueue(defineJob({ name: 'other', stage: () => 1 }), null)
  // @ts-expect-error a job that is enqueued has an id
  await fake.runJob(provision)
}

describe('enqueue', () => {
  it('records the job, as it was given, with what became of its transaction', async () => {
    const fake = fakeHoldfast({ jobs: [provision] })
    await fake.enqueue(provision, input)
    for (const end of ['commitDistributed', 'rollbackDistributed', 'outcome'] as const) {
      await fake.beginDistributed(end, (tx) => fake.enqueue('provision-user', input, { tx, priority: 2 }))
      await fake[end](end)
    }
    const sent: unknown[] = []
    const query = async (text: string, values: unknown[]) => void sent.push(text, values)
    const { jobId } = await fake.enqueue('provision-user', input, { tx: { query } })
    const attempts = fake.transactions.map(({ attempt }) => attempt)
    const states = fake.enqueued.map(({ state, transaction, attempt }) => [state, transaction, attempt])
    expect(states).toEqual([
      ['committed', null, null],
      ['committed', 'commitDistributed', attempts[0]],
      ['rolled_back', 'rollbackDistributed', attempts[1]],
      ['pending', 'outcome', attempts[2]],
      ['unknown', null, null],
    ])
    for (const job of fake.enqueued)
      expect(job).toMatchObject({ name: 'provision-user', input, status: 'queued' })
    expect(sent).toEqual([
      expect.stringContaining('holdfast.enqueue'),
      expect.arrayContaining([JSON.stringify(input)]),
    ])
    expect((await fake.jobs.list()).map(({ id }) => id)).toEqual([
      jobId,
      fake.enqueued[1]?.id,
      fake.enqueued[0]?.id,
    ])
    expect(fake.statements()).toEqual([])
  })

  it('gives the job away as it is then, not to be changed', async () => {
    const fake = fakeHoldfast({ jobs: [provision] })
    const { jobId } = await fake.enqueue(provision, input)
    const job = await fake.jobs.get(jobId)
    await fake.runJob(jobId)
    expect(job).toMatchObject({ status: 'queued', result: null })
    expect(await fake.jobs.get(jobId)).toMatchObject({
      status: 'completed',
      result: '2026-01-01T00:00:00.000Z',
    })
    expect(fake.statements('primary', `job:${jobId}`)).toEqual([
      { text: 'insert into users values ($1, $2)', values: ['a', new Date(input.since)] },
    ])
  })

  it('is not what a job of no or of two definitions, or on a database that is not there, can be', async () => {
    const unknown = fakeHoldfast().enqueue('provision-user', input)
    await expect(unknown).rejects.toEqual(code('INVALID_CONFIG'))
    const billing = defineJob({ name: 'bill', participants: ['billing'], stage: () => 1 })
    expect(() => fakeHoldfast({ jobs: [provision, provision, billing] })).toThrow(
      /two are named provision-user\n.*bill takes part on billing/,
    )
    fakeHoldfast({ participants: ['billing'], jobs: [billing] })
  })
})

describe('runJobs', () => {
  it('runs what is due once each, by priority, and nothing that waits', async () => {
    const order: string[] = []
    const asks = defineJob({
      name: 'asks',
      stage() {
        order.push('asks')
        throw new RetryLater(0)
      },
    })
    const fake = fakeHoldfast({ jobs: [note('one', order), note('two', order), asks] })
    await fake.enqueue('two', 'low', { priority: 5 })
    await fake.enqueue('one', 'first')
    const late = await fake.enqueue('one', 'late', { delayMs: 1 })
    await fake.enqueue('two', 'second')
    await fake.enqueue('asks', null)
    await fake.beginDistributed('open', (tx) => fake.enqueue('one', 'open', { tx }))
    const ran = await fake.runJobs()
    expect(order).toEqual(['one first', 'two second', 'asks', 'two low'])
    expect(ran.map(({ status }) => status)).toEqual(['completed', 'completed', 'queued', 'completed'])
    await fake.commitDistributed('open')
    expect((await fake.runJobs()).map(({ name }) => name)).toEqual(['one', 'asks'])
    await fake.runJob(late.jobId)
    expect(order.slice(4)).toEqual(['one open', 'asks', 'one late'])
  })

  it('leaves what its jobs enqueue, and the pause after a failure, to the next call', async () => {
    const fake: FakeHoldfast = fakeHoldfast({
      jobs: [
        defineJob({
          name: 'next',
          stage: ({ tx, input }) => fake.enqueue('next', Number(input) + 1, { tx }),
        }),
        defineJob({ name: 'fails', retry: { backoffMs: 1 }, stage: () => Promise.reject(new Error('no')) }),
      ],
    })
    await fake.enqueue('next', 0)
    await fake.enqueue('fails', null)
    for (let call = 0; call < 3; call++) await fake.runJobs()
    expect(fake.enqueued.filter(({ name }) => name === 'next').map((job) => [job.input, job.status])).toEqual(
      [
        [0, 'completed'],
        [1, 'completed'],
        [2, 'completed'],
        [3, 'queued'],
      ],
    )
    const failing = fake.enqueued.find(({ name }) => name === 'fails')
    expect(failing).toMatchObject({ status: 'queued', attempts: 1 })
    expect(await fake.jobs.retry(failing?.id ?? '')).toBe('queued')
    expect((await fake.runJobs()).map(({ name, attempts }) => [name, attempts])).toContainEqual(['fails', 2])
  })
})

describe('a run', () => {
  it('steps back where the job runs already, and throws for one that is not there', async () => {
    const gate = deferred<void>()
    const stage = vi.fn(() => gate.promise)
    const fake = fakeHoldfast({ jobs: [defineJob({ name: 'slow', stage })] })
    const { jobId } = await fake.enqueue('slow', null)
    const runs = [fake.runJob(jobId), fake.runJob(jobId)]
    expect(await runs[1]).toMatchObject({ status: 'running' })
    expect(await fake.runJobs()).toEqual([])
    gate.resolve()
    expect(await runs[0]).toMatchObject({ status: 'completed' })
    expect(stage).toHaveBeenCalledOnce()
    await expect(fake.runJob('slow-1')).rejects.toEqual(code('UNKNOWN_JOB'))
    const { staged } = await fake.beginDistributed('open', (tx) => fake.enqueue('slow', null, { tx }))
    await expect(fake.runJob(staged.jobId)).rejects.toEqual(code('UNKNOWN_JOB'))
  })

  it('is told to stop by a cancel, and its effects are taken back when they are over', async () => {
    const [entered, undone] = [deferred<void>(), vi.fn()]
    const hangs = defineJob({
      name: 'hangs',
      stage: () => ({ id: 1 }),
      async effects({ signal }) {
        entered.resolve()
        await new Promise((_, reject) => {
          signal.addEventListener('abort', () => reject(new Error('stopped')))
        })
      },
      compensate: undone,
    })
    const fake = fakeHoldfast({ jobs: [hangs] })
    const { jobId } = await fake.enqueue(hangs, null)
    const run = fake.runJob(jobId)
    const waiting = fake.jobs.wait({ jobId })
    await entered.promise
    expect(await fake.jobs.cancel(jobId)).toBe('cancelling')
    expect(undone).not.toHaveBeenCalled()
    expect((await run).status).toBe('cancelled')
    expect((await waiting).status).toBe('cancelled')
    expect(undone).toHaveBeenCalledExactlyOnceWith(expect.objectContaining({ staged: { id: 1 }, jobId }))
    const [transaction] = fake.transactions
    expect(transaction).toMatchObject({ name: `job:${jobId}`, status: 'rolled_back', compensation: 'done' })
  })

  it('fails by its deadline, once its effects are back; between two runs its time stands still', async () => {
    const undone = vi.fn()
    let step: (jobId: string) => unknown = (jobId) => fake.crash(`job:${jobId}`)
    const fake = fakeHoldfast({
      jobs: [
        defineJob({
          name: 'slow',
          stage: () => 1,
          async effects({ jobId, signal }) {
            await step(jobId)
            return signal.aborted
          },
          compensate: undone,
        }),
      ],
    })
    const { jobId } = await fake.enqueue('slow', null)
    await expect(fake.runJob(jobId)).rejects.toThrow('crashed')
    expect(await fake.jobs.get(jobId)).toMatchObject({ status: 'running', attempts: 0 })
    await fake.expire(`job:${jobId}`)
    expect(fake.transactions).toMatchObject([{ status: 'pending' }])
    step = () => fake.expire(`job:${jobId}`)
    const [ran] = await fake.runJobs()
    expect(ran).toMatchObject({ status: 'queued', attempts: 1 })
    expect(ran?.errors).toMatchObject([{ message: expect.stringContaining('past its deadline') }])
    expect(undone).toHaveBeenCalledOnce()
    step = () => undefined
    expect(await fake.runJob(jobId)).toMatchObject({ status: 'completed', result: false })
    expect(fake.transactions.map(({ status }) => status)).toEqual(['cleaned_up', 'committed'])
  })

  it('that dies again and again fails the job, and what it left pending is rolled back first', async () => {
    const undone = vi.fn()
    const fake = fakeHoldfast({
      jobs: [
        defineJob({
          name: 'fatal',
          stage: () => 1,
          effects: ({ jobId }) => {
            fake.crash(`job:${jobId}`)
            throw new Error('of a dead process')
          },
          compensate: undone,
        }),
      ],
    })
    const { jobId } = await fake.enqueue('fatal', null)
    for (let run = 0; run <= 20; run++) await expect(fake.runJob(jobId)).rejects.toThrow('crashed')
    expect(await fake.runJob(jobId)).toMatchObject({
      status: 'failed',
      errors: [{ message: 'its worker died 21 times in a row while it ran' }],
    })
    expect(fake.transactions).toMatchObject([{ status: 'rolled_back' }])
    expect(undone).toHaveBeenCalledOnce()
  })
})

describe('jobs.wait', () => {
  it('waits for the end, again after a retry, or for its signal', async () => {
    let fails = true
    const fake = fakeHoldfast({
      jobs: [
        defineJob({
          name: 'place',
          retry: { attempts: 1 },
          stage() {
            if (fails) throw new Error('no')
          },
        }),
      ],
    })
    const { jobId } = await fake.enqueue('place', null)
    const stopped = new AbortController()
    const waits = [fake.jobs.wait(jobId, { signal: stopped.signal }), fake.jobs.wait({ jobId })]
    stopped.abort()
    expect((await waits[0])?.status).toBe('queued')
    await fake.runJobs()
    expect((await waits[1])?.status).toBe('failed')
    await fake.jobs.retry(jobId)
    fails = false
    const again = fake.jobs.wait(jobId)
    await fake.runJobs()
    expect((await again).status).toBe('completed')
  })
})
