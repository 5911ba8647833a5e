import { expect, it, onTestFinished } from 'vitest'
import { deferred } from '../../src/db/deferred.ts'
import type { Json } from '../../src/db/json.ts'
import type { Tx } from '../../src/db/tx.ts'
import { defineJob } from '../../src/jobs/job-definition.ts'
import { type FakeHoldfast, fakeHoldfast } from '../../src/testing/index.ts'
import { createHoldfast, type Holdfast } from '../../src/workers/holdfast.ts'
import { newDatabases } from '../support/database.ts'
import { type See, tell } from '../support/stories.ts'

process.env.LOG_LEVEL = 'silent'

type Either = Pick<Holdfast, keyof FakeHoldfast & keyof Holdfast>
type Story = (hf: Either, see: See) => unknown

const place = defineJob({ name: 'place', stage: () => 1 })
const call = { scope: 'orders', key: 'k', fingerprint: { b: [1, { y: 1, x: 2 }], a: 'x' } }
const answer = (response: unknown) => () => response as Json

/** Each is told to the real one and to the fake; what every step returned or threw has to be the same. */
const stories: Record<string, Story> = {
  async 'done once and replayed'(hf, see) {
    const response = { z: 1, a: [null, -0], gone: undefined, at: new Date(0) }
    let times = 0
    const work = async (tx: Tx) => {
      await tx`select 1`
      times++
      return response as unknown as Json
    }
    await see(hf.idempotent(call, work))
    await see(hf.idempotent(call, work))
    await see(hf.idempotent({ ...call, fingerprint: { a: 'x', b: [1, { x: 2, y: 1 }] } }, work))
    await see({ times })
    await see(hf.idempotent({ ...call, fingerprint: null }, work))
    await see(hf.idempotent({ scope: call.scope, key: call.key }, work))
    await see(hf.idempotent({ ...call, scope: 'refunds', fingerprint: 1 }, work))
    await see(hf.idempotent({ ...call, key: 'other' }, answer(null)))
    await see(hf.idempotent({ ...call, key: 'other' }, answer(1)))
    await see({ times })
  },
  async 'under way'(hf, see) {
    for (const end of ['done', 'failed']) {
      const [entered, go] = [deferred<void>(), deferred<void>()]
      const id = { ...call, key: end }
      const first = hf.idempotent(id, async () => {
        entered.resolve()
        await go.promise
        if (end === 'failed') throw new Error('out of stock')
        return 'first'
      })
      first.catch(() => undefined)
      await entered.promise
      await see(hf.idempotent(id, answer('second')))
      await see(hf.idempotent({ ...id, wait: 20 }, answer('second')))
      await see(hf.idempotent({ ...id, fingerprint: 1, wait: 60_000 }, answer('second')))
      const waiting = [1, 2].map(() => hf.idempotent({ ...id, wait: 60_000 }, answer('waited')))
      go.resolve()
      await see(first)
      // One of those that waited runs, where the first has left nothing.
      const ran = await Promise.all(waiting)
      await see(ran.toSorted((one, other) => Number(one.replayed) - Number(other.replayed)))
    }
  },
  async 'failed and free again'(hf, see) {
    await see(hf.idempotent(call, () => Promise.reject(new Error('out of stock'))))
    await see(hf.idempotent(call, answer(1n)))
    await see(hf.idempotent(call, answer(undefined)))
    await see(hf.idempotent({ ...call, maxResponseBytes: 5 }, answer('12345')))
    await see(hf.idempotent({ ...call, fingerprint: 'new', maxResponseBytes: 7 }, answer('12345')))
  },
  async 'what is refused'(hf, see) {
    for (const wrong of [
      { scope: '' },
      { key: 'x'.repeat(256) },
      { key: '\ud800' },
      { key: 7 as never },
      { fingerprint: 1n as never },
      { ttlMs: 0, wait: -1 },
      { leaseMs: Number.NaN },
      { maxResponseBytes: -1 },
    ])
      await see(hf.idempotent({ ...call, ...wrong }, () => see('never').then(() => 1)))
  },
  async 'what its transaction does'(hf, see) {
    const work = (fails: boolean) => async (tx: Tx) => {
      const { jobId } = await hf.enqueue('place', { fails }, { tx })
      const isNew = await hf.once(tx, 'mailer', 'e')
      const { length } = await hf.publish(tx, { type: 'x' })
      await see(hf.jobs.get(jobId))
      await see({ isNew, length })
      if (fails) throw new Error('out of stock')
      return isNew
    }
    await see(hf.idempotent(call, work(true)))
    await see(hf.idempotent(call, work(false)))
    await see(hf.idempotent({ ...call, key: 'other' }, work(false)))
    await see(hf.jobs.list())
    await see(hf.listDistributed())
    let late: Tx = (() => undefined) as never
    await see(
      hf.idempotent({ ...call, key: 'late' }, (tx) => {
        late = tx
        return null
      }),
    )
    await see(late`select 1`)
  },
}

it.each(Object.entries(stories))('the fake does what the real one does: %s', async (_name, story) => {
  const real = await createHoldfast({ databases: await newDatabases(), jobs: [place], migrate: true })
  onTestFinished(() => real.close())
  const told = await tell((see) => story(real, see))
  expect(await tell((see) => story(fakeHoldfast({ jobs: [place] }), see))).toEqual(told)
  expect(told.length).toBeGreaterThan(3)
})
