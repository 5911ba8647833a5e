import { afterAll, describe, expect, it } from 'vitest'
import type { Tx } from '../../src/db/tx.ts'
import { fakeHoldfast } from '../../src/testing/index.ts'
import { createHoldfast } from '../../src/workers/holdfast.ts'
import { newDatabases } from '../support/database.ts'
import { type See, tell } from '../support/stories.ts'

process.env.LOG_LEVEL = 'silent'

/** What both can do. */
type Either = ReturnType<typeof fakeHoldfast<'billing'>>
type Story = (hf: Pick<Either, (typeof calls)[number]>, see: See) => unknown

const calls = [
  'beginDistributed',
  'commitDistributed',
  'rollbackDistributed',
  'runDistributed',
  'outcome',
  'vote',
  'listDistributed',
  'publish',
  'once',
] as const

const one = async (tx: Tx) => {
  await tx`select 1`
  return { at: new Date(0), gone: undefined }
}
const fails = () => Promise.reject(new Error('own'))

/** Each is told to the real one and to the fake; what every step returned or threw has to be the same. */
const stories: Record<string, Story> = {
  async 'commit and roll back'(hf, see) {
    await see(hf.beginDistributed('a', { primary: one, billing: one }))
    await see(hf.outcome('a'))
    await see(hf.listDistributed())
    await see(hf.commitDistributed('a'))
    await see(hf.commitDistributed('a'))
    await see(hf.rollbackDistributed('a'))
    await see(hf.beginDistributed('a', one))
    await see(hf.outcome('a'))
    await see(hf.beginDistributed('b', one, { operation: 'pay', metadata: { x: 1 }, deadlineMs: 5_000 }))
    await see(hf.rollbackDistributed('b', 'no'))
    await see(hf.rollbackDistributed('b'))
    await see(hf.commitDistributed('b'))
    await see(hf.outcome('b'))
    await see(hf.beginDistributed('b', one))
    await see(hf.listDistributed())
    await see(hf.listDistributed({ status: 'rolled_back' }))
  },
  async 'what is refused'(hf, see) {
    await see(hf.beginDistributed('a b', one))
    await see(hf.beginDistributed('outbox:a', one))
    await see(hf.beginDistributed('a', {}))
    await see(hf.beginDistributed('a', { warehouse: one } as never))
    await see(hf.beginDistributed('a', async () => 1n))
    await see(
      hf.beginDistributed('a', one, { awaits: ['billing', 'Bad', 'x', 'x'], deadlineMs: -1, finishers: [] }),
    )
    await see(hf.beginDistributed('a', { primary: one, billing: fails }))
    await see(hf.commitDistributed('a'))
    await see(hf.commitDistributed('never'))
    await see(hf.outcome('never'))
    await see(hf.outcome('a'))
    await see(hf.vote('never', 'x', 'ready'))
  },
  async 'while the work runs'(hf, see) {
    await see(
      hf.beginDistributed('a', async () => {
        await see(hf.commitDistributed('a'))
        await see(hf.outcome('a'))
        await see(hf.beginDistributed('a', one))
        await see(hf.rollbackDistributed('a', 'slow'))
      }),
    )
    await see(hf.outcome('a'))
  },
  async votes(hf, see) {
    const awaits = ['x', 'y']
    await see(hf.beginDistributed('a', one, { awaits }))
    await see(hf.commitDistributed('a'))
    await see(hf.vote('a', 'x', 'ready', { token: 'wrong' }))
    for (const [service, vote] of [
      ['x', 'ready'],
      ['x', 'ready'],
      ['x', 'abort'],
      ['z', 'ready'],
      ['y', 'ready'],
      ['y', 'ready'],
    ] as const)
      await see(hf.vote('a', service, vote))
    await see(hf.commitDistributed('a'))
    await see(hf.beginDistributed('b', one, { awaits }))
    await see(hf.vote('b', 'x', 'ready'))
    await see(hf.vote('b', 'y', 'abort', { reason: 'full' }))
    for (const service of awaits)
      for (const vote of ['ready', 'abort'] as const) await see(hf.vote('b', service, vote))
    await see(hf.commitDistributed('b'))
    const early = (vote: 'ready' | 'abort') => () => see(hf.vote(vote, 'x', vote))
    for (const vote of ['ready', 'abort'] as const) {
      await see(hf.beginDistributed(vote, early(vote), { awaits: ['x'] }))
      await see(hf.outcome(vote))
    }
  },
  async runs(hf, see) {
    const operation = 'pay'
    const compensate = (context: object) => see(Promise.resolve({ ...context, log: null, signal: null }))
    const effects = (context: object) =>
      see(Promise.resolve({ ...context, signal: null })).then(() => ({ ok: true }))
    await see(hf.runDistributed('a', { stage: { primary: one, billing: one }, effects }))
    await see(hf.runDistributed('a', { stage: fails }))
    await see(hf.runDistributed('b', { operation, stage: one, effects: fails, compensate }))
    await see(hf.outcome('b'))
    await see(hf.listDistributed())
    await see(hf.runDistributed('b', { operation, stage: one, compensate }))
    await see(hf.runDistributed('c', { operation, stage: fails, compensate }))
    await see(hf.runDistributed('d', { stage: one, compensate }))
    await see(hf.beginDistributed('e', one))
    await see(hf.runDistributed('e', { stage: one }))
    const meddled = (meddle: () => Promise<unknown>) => ({
      operation,
      stage: one,
      compensate,
      effects: () => see(meddle()),
    })
    await see(
      hf.runDistributed(
        'f',
        meddled(() => hf.runDistributed('f', { stage: one })),
      ),
    )
    await see(
      hf.runDistributed(
        'g',
        meddled(() => hf.rollbackDistributed('g', 'changed my mind')),
      ),
    )
    await see(
      hf.runDistributed(
        'h',
        meddled(() => hf.commitDistributed('h')),
      ),
    )
    await see(hf.runDistributed('i', { operation, stage: one, compensate, effects: async () => 1n }))
    await see(hf.listDistributed({ status: 'committed' }))
  },
  async events(hf, see) {
    const publish = (event: object) => async (tx: Tx) => ({
      count: (await hf.publish(tx, event as never)).length,
    })
    await see(hf.beginDistributed('a', publish({ type: 'x', subject: 's', data: { a: 1 } })))
    await see(hf.beginDistributed('b', publish([{ type: 'x' }, { type: 'y' }])))
    await see(hf.beginDistributed('c', publish({ type: 1 })))
    await see(hf.publish({} as never, { type: 'x' }))
  },
  async 'what was seen'(hf, see) {
    const once =
      (...ids: string[]) =>
      async (tx: Tx) => {
        const isNew: boolean[] = []
        for (const id of ids) isNew.push(await hf.once(tx, 'mailer', id))
        return { isNew }
      }
    await see(hf.beginDistributed('a', { primary: once('1', '2', '1'), billing: once('1') }))
    await see(hf.commitDistributed('a'))
    await see(hf.beginDistributed('b', { primary: once('2', '3'), billing: once('2', '1') }))
    await see(hf.rollbackDistributed('b'))
    await see(
      hf.beginDistributed('c', async (tx) => {
        const undone = tx.savepoint(async (inner) => {
          await see(once('3', '4')(inner))
          throw new Error('undone')
        })
        await see(undone)
        return once('3', '1', '4')(tx)
      }),
    )
    for (const [end, name] of [
      ['commitDistributed', 'd'],
      ['rollbackDistributed', 'e'],
    ] as const) {
      await see(hf.beginDistributed(name, once(name)))
      const waiting = hf.beginDistributed(`${name}-waits`, once(name))
      await see(hf[end](name))
      await see(waiting)
    }
    await see(hf.beginDistributed('f', (tx) => hf.once(tx, '', 'x')))
    await see(hf.beginDistributed('g', (tx) => hf.once(tx, 'mailer', 'x'.repeat(201))))
    await see(hf.once({} as never, 'mailer', 'x'))
  },
}

/** The same names in each story stay apart: the suffix leaves a bad name bad. */
function withSuffix(hf: Parameters<Story>[0], suffix: string): Parameters<Story>[0] {
  const call =
    (name: (typeof calls)[number]) =>
    (first: unknown, ...rest: unknown[]) =>
      (hf[name] as (...args: unknown[]) => unknown)(
        typeof first === 'string' ? `${first}_${suffix}` : first,
        ...rest,
      )
  return Object.fromEntries(calls.map((name) => [name, call(name)])) as never
}

const real = await createHoldfast({ databases: await newDatabases({ billing: 'west' }), migrate: true })
afterAll(() => real.close())
const fake = fakeHoldfast({ participants: ['billing'] })

describe('the fake does what the real one does:', () => {
  it.each(Object.entries(stories))('%s', async (name, story) => {
    const suffix = name.replaceAll(' ', '-')
    const tellTo = (hf: unknown) => tell((see) => story(withSuffix(hf as Parameters<Story>[0], suffix), see))
    const told = await tellTo(real)
    expect(await tellTo(fake)).toEqual(told)
    expect(told.length).toBeGreaterThan(3)
  })
})
