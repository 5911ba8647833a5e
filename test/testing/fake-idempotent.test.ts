import { Hono } from 'hono'
import { describe, expect, it, vi } from 'vitest'
import { deferred } from '../../src/db/deferred.ts'
import type { Tx } from '../../src/db/tx.ts'
import { idempotency } from '../../src/hono.ts'
import { fakeHoldfast } from '../../src/testing/index.ts'

const code = (name: string) => expect.objectContaining({ code: `HOLDFAST_${name}` })
const call = { scope: 'orders', key: 'k', fingerprint: { total: 5 } }
const order = async (tx: Tx) => {
  const [row] = await tx<{ id: number }[]>`insert into orders (total) values (5) returning id`
  return { order: row?.id ?? 0 }
}

describe('idempotent', () => {
  it('records what its transaction does, and what became of it', async () => {
    const fake = fakeHoldfast()
    fake.answer('insert into orders', [{ id: 7 }])
    const fails = async (tx: Tx) => {
      await fake.publish(tx, { type: 'order.placed' })
      expect(fake.events).toMatchObject([{ state: 'pending' }])
      throw new Error('out of stock')
    }
    await expect(fake.idempotent(call, fails)).rejects.toThrow('out of stock')
    const work = async (tx: Tx) => {
      await fake.publish(tx, { type: 'order.placed' })
      return order(tx)
    }
    const { response } = await fake.idempotent(call, work)
    // What a caller does to its response is not in the next one's.
    Object.assign(response, { order: 8 })
    expect(await fake.idempotent(call, work)).toEqual({ response: { order: 7 }, replayed: true })
    expect(fake.events).toMatchObject([
      { state: 'rolled_back', transaction: null, attempt: null },
      { state: 'committed', transaction: null, attempt: null },
    ])
    expect(fake.statements()).toEqual([
      { text: 'insert into orders (total) values (5) returning id', values: [] },
    ])
    expect(fake.transactions).toEqual([])
  })

  it('refuses work that went on after a statement had failed', async () => {
    const fake = fakeHoldfast()
    fake.answer('insert into orders', new Error('unique'))
    const swallows = async (tx: Tx) => {
      await order(tx).catch(() => undefined)
      return null
    }
    await expect(fake.idempotent(call, swallows)).rejects.toEqual(code('NOT_PREPARED'))
    const undoes = async (tx: Tx) => {
      await tx.savepoint(order).catch(() => undefined)
      return 'placed elsewhere'
    }
    expect(await fake.idempotent(call, undoes)).toEqual({ response: 'placed elsewhere', replayed: false })
  })

  it('waits as long as it may for the call that is under way', async () => {
    const fake = fakeHoldfast()
    const [entered, go] = [deferred<void>(), deferred<void>()]
    const first = fake.idempotent(call, async () => {
      entered.resolve()
      await go.promise
      return 1
    })
    await entered.promise
    const second = vi.fn(() => 2)
    await expect(fake.idempotent({ ...call, wait: 1 }, second)).rejects.toMatchObject({
      code: 'HOLDFAST_IDEMPOTENCY_IN_FLIGHT',
      retryAfterMs: expect.any(Number),
    })
    expect(() => fake.expireKey(call)).toThrow('no response that could expire')
    go.resolve()
    await first
    expect(await fake.idempotent(call, second)).toEqual({ response: 1, replayed: true })
    expect(second).not.toHaveBeenCalled()
  })

  it('forgets a response when its time is over, and then takes any call', async () => {
    const fake = fakeHoldfast()
    expect(() => fake.expireKey(call)).toThrow('no response that could expire')
    await fake.idempotent(call, () => 1)
    fake.expireKey(call)
    const again = { ...call, fingerprint: null }
    expect(await fake.idempotent(again, () => 2)).toEqual({ response: 2, replayed: false })
  })

  it('serves the adapters for HTTP', async () => {
    const fake = fakeHoldfast()
    fake.answer('insert into orders', [{ id: 7 }])
    const app = new Hono()
    const once = idempotency(fake, { scope: 'orders' })
    app.post(
      '/orders',
      once(async (_c, { tx }) => ({ status: 201, json: await order(tx) })),
    )
    const post = () => app.request('/orders', { method: 'POST', headers: { 'idempotency-key': '"k"' } })
    for (const response of [await post(), await post()]) {
      expect(response.status).toBe(201)
      expect(await response.json()).toEqual({ order: 7 })
    }
    expect(fake.statements()).toHaveLength(1)
  })
})
