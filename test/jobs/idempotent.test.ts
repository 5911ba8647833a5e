import { describe, expect, it } from 'vitest'
import { deferred } from '../../src/db/deferred.ts'
import {
  EscapedWorkError,
  FencedError,
  IdempotencyInFlightError,
  IdempotencyMismatchError,
  InvalidConfigError,
  InvalidPayloadError,
  NotPreparedError,
  ResponseTooLargeError,
} from '../../src/db/errors.ts'
import type { Json } from '../../src/db/json.ts'
import type { Tx } from '../../src/db/tx.ts'
import { type IdempotentOptions, idempotent } from '../../src/jobs/idempotent.ts'
import { newDatabases, openContext } from '../support/database.ts'

// Two processes. Who waits here waits for the other's end, not for a limit.
const patient = { lockTimeoutMs: 60_000, idleTimeoutMs: 60_000 }
const urls = await newDatabases()
const one = await openContext(urls, patient)
const other = await openContext(urls, patient)
const { sql } = one.databases.primary
await sql`create table orders (id int generated always as identity, key text not null)`

let serial = 0
const newKey = () => `key_${++serial}`
const callOf = (key: string, more: Partial<IdempotentOptions> = {}): IdempotentOptions => ({
  scope: 'orders',
  key,
  fingerprint: { total: 5 },
  ...more,
})

const orderFor = (key: string) => async (tx: Tx) => {
  const [row] = await tx<{ id: number }[]>`insert into orders (key) values (${key}) returning id`
  return { order: row!.id }
}

async function ordersOf(key: string): Promise<number[]> {
  return (await sql<{ id: number }[]>`select id from orders where key = ${key}`).map(({ id }) => id)
}

type Row = { token: string; claimed: Date; lease: Date; expires: Date; completed: boolean }

async function rowOf(key: string): Promise<Row | undefined> {
  const [row] = await sql<Row[]>`
    select token, claimed_at as claimed, lease_until as lease, expires_at as expires, response is not null as completed
    from holdfast.idempotency_keys where key = ${key}`
  return row
}

/** As if its owner had been silent for the length of its lease. */
async function endLease(key: string): Promise<void> {
  const { count } = await sql`
    update holdfast.idempotency_keys set lease_until = clock_timestamp() where key = ${key} and response is null`
  expect(count).toBe(1)
}

async function expire(key: string): Promise<void> {
  await sql`update holdfast.idempotency_keys set expires_at = clock_timestamp() where key = ${key}`
}

/** A call whose work has done its part and waits to be let on. */
async function startCall(key: string, more: Partial<IdempotentOptions> = {}) {
  const working = deferred<AbortSignal>()
  const go = deferred<void>()
  const result = idempotent(one, callOf(key, more), async (tx, { signal }) => {
    const response = await orderFor(key)(tx)
    working.resolve(signal)
    await go.promise
    return response
  })
  result.catch(() => undefined)
  return { result, signal: await working.promise, goOn: () => go.resolve() }
}

describe('idempotent', () => {
  it('runs once, and gives every later call the response of the first', async () => {
    const key = newKey()
    const first = await idempotent(one, callOf(key), orderFor(key))
    expect(first).toEqual({ response: { order: (await ordersOf(key))[0] }, replayed: false })
    for (const ctx of [one, other]) {
      expect(await idempotent(ctx, callOf(key), orderFor(key))).toEqual({ ...first, replayed: true })
    }
    expect(await ordersOf(key)).toHaveLength(1)
    const elsewhere = await idempotent(one, callOf(key, { scope: 'refunds' }), orderFor(key))
    expect(elsewhere.replayed).toBe(false)
  })

  it('gives the first caller what JSON makes of the response, like all others', async () => {
    const key = newKey()
    const response = { z: 1, a: [null, 'é\u{1f600}', 1e21, -0], gone: undefined, at: new Date(0) }
    const call = () => idempotent(one, callOf(key), () => response as unknown as Json)
    const first = await call()
    expect(first.response).toStrictEqual({
      z: 1,
      a: [null, 'é\u{1f600}', 1e21, 0],
      at: '1970-01-01T00:00:00.000Z',
    })
    const second = await call()
    expect(JSON.stringify(second.response)).toBe(JSON.stringify(first.response))
    const nothing = newKey()
    expect(await idempotent(one, callOf(nothing), () => null)).toEqual({ response: null, replayed: false })
    expect(await idempotent(one, callOf(nothing), () => 1)).toEqual({ response: null, replayed: true })
  })

  it('runs once for 64 callers in two processes; those who wait get its response', async () => {
    const key = newKey()
    const calls = Array.from({ length: 64 }, (_, i) =>
      idempotent(i % 2 === 0 ? one : other, callOf(key, { wait: 120_000 }), orderFor(key)),
    )
    const results = await Promise.all(calls)
    const [order] = await ordersOf(key)
    expect(await ordersOf(key)).toEqual([order])
    expect(results.map(({ response }) => response.order)).toEqual(Array(64).fill(order))
    expect(results.filter(({ replayed }) => !replayed)).toHaveLength(1)
  })

  it('runs once for 64 callers; those who do not wait are told to come again', async () => {
    const key = newKey()
    const othersAnswered = deferred<void>()
    let refused = 0
    const calls = Array.from({ length: 64 }, async (_, i) => {
      try {
        return await idempotent(i % 2 === 0 ? one : other, callOf(key), async (tx) => {
          await othersAnswered.promise
          return orderFor(key)(tx)
        })
      } catch (error) {
        if (++refused === 63) othersAnswered.resolve()
        return error as Error
      }
    })
    const results = await Promise.all(calls)
    const errors = results.filter((result) => result instanceof Error)
    expect(errors).toHaveLength(63)
    for (const error of errors) {
      expect(error).toBeInstanceOf(IdempotencyInFlightError)
      expect((error as IdempotencyInFlightError).retryAfterMs).toBeGreaterThanOrEqual(100)
    }
    expect(await ordersOf(key)).toHaveLength(1)
  })

  it('refuses another fingerprint, also in flight; the order of its keys does not matter', async () => {
    const key = newKey()
    const fingerprint = { b: [1, { y: 1, x: 2 }], a: 'x' }
    const running = await startCall(key, { fingerprint })
    const call = (other: Json) => idempotent(one, callOf(key, { fingerprint: other }), orderFor(key))
    await expect(call({ a: 'y' })).rejects.toThrow(IdempotencyMismatchError)
    await expect(call({ a: 'x', b: [1, { x: 2, y: 1 }] })).rejects.toThrow(IdempotencyInFlightError)
    running.goOn()
    await running.result
    await expect(call(null)).rejects.toThrow(IdempotencyMismatchError)
    expect((await call({ a: 'x', b: [1, { x: 2, y: 1 }] })).replayed).toBe(true)
    // The key stays bound to its call also when its owner is gone.
    const gone = newKey()
    const stopped = await startCall(gone)
    await endLease(gone)
    await expect(idempotent(one, callOf(gone, { fingerprint: 1 }), orderFor(gone))).rejects.toThrow(
      IdempotencyMismatchError,
    )
    stopped.goOn()
    await stopped.result
    expect(await ordersOf(gone)).toHaveLength(1)
  })

  it('is free again when the work throws, and nothing of the work stays', async () => {
    const key = newKey()
    const failing = idempotent(one, callOf(key), async (tx) => {
      await orderFor(key)(tx)
      throw new Error('out of stock')
    })
    await expect(failing).rejects.toThrow('out of stock')
    expect(await ordersOf(key)).toEqual([])
    expect(await rowOf(key)).toBeUndefined()
    expect((await idempotent(other, callOf(key), orderFor(key))).replayed).toBe(false)
  })

  it('is free again after an error at the commit, of a deferred constraint', async () => {
    await sql`create table later (id int unique deferrable initially deferred)`
    const key = newKey()
    const work = async (tx: Tx) => {
      await orderFor(key)(tx)
      await tx`insert into later values (1), (1)`
      return null
    }
    await expect(idempotent(one, callOf(key), work)).rejects.toMatchObject({ code: '23505' })
    expect(await rowOf(key)).toBeUndefined()
    expect(await ordersOf(key)).toEqual([])
  })

  it('commits nothing of an owner that lost its lease, and tells it', async () => {
    const key = newKey()
    const stopped = await startCall(key)
    const { token } = (await rowOf(key))!
    await endLease(key)
    const heir = await idempotent(other, callOf(key), orderFor(key))
    expect(heir.replayed).toBe(false)
    expect(BigInt((await rowOf(key))!.token)).toBeGreaterThan(BigInt(token))
    stopped.goOn()
    await expect(stopped.result).rejects.toThrow(FencedError)
    expect(await ordersOf(key)).toEqual([heir.response.order])
    expect(await idempotent(one, callOf(key), orderFor(key))).toEqual({ ...heir, replayed: true })
  })

  it('commits nothing of an owner whose heir is still at work, and does not disturb the heir', async () => {
    const key = newKey()
    const stopped = await startCall(key)
    await endLease(key)
    const heir = await startCall(key)
    stopped.goOn()
    await expect(stopped.result).rejects.toThrow(FencedError)
    expect(await rowOf(key)).toMatchObject({ completed: false })
    heir.goOn()
    const { response } = await heir.result
    expect(await ordersOf(key)).toEqual([response.order])
  })

  it('commits nothing on a claim that a crash of the server forgot, also where its token was given again', async () => {
    const key = newKey()
    const forgotten = await startCall(key)
    await sql`delete from holdfast.idempotency_keys where key = ${key}`
    forgotten.goOn()
    await expect(forgotten.result).rejects.toThrow(FencedError)
    expect(await ordersOf(key)).toEqual([])
    const twice = await startCall(key)
    await sql`update holdfast.idempotency_keys set fingerprint = '' where key = ${key}`
    twice.goOn()
    await expect(twice.result).rejects.toThrow(FencedError)
    expect(await ordersOf(key)).toEqual([])
  })

  it('lets an owner complete whose lease ran out and who was not missed', async () => {
    const key = newKey()
    const slow = await startCall(key)
    await endLease(key)
    slow.goOn()
    expect((await slow.result).replayed).toBe(false)
    expect(await ordersOf(key)).toHaveLength(1)
  })

  it('renews the lease while the work runs', async () => {
    const key = newKey()
    const long = await startCall(key, { leaseMs: 6_000 })
    await expect
      .poll(async () => {
        const { lease, claimed } = (await rowOf(key))!
        return lease.getTime() - claimed.getTime()
      })
      .toBeGreaterThan(7_000)
    await expect(idempotent(other, callOf(key), orderFor(key))).rejects.toThrow(IdempotencyInFlightError)
    expect(long.signal.aborted).toBe(false)
    long.goOn()
    expect((await long.result).replayed).toBe(false)
  })

  it('aborts the signal of the work when somebody has taken over', async () => {
    const key = newKey()
    const stopped = await startCall(key, { leaseMs: 900 })
    const aborted = new Promise<void>((resolve) => {
      if (stopped.signal.aborted) resolve()
      stopped.signal.addEventListener('abort', () => resolve())
    })
    await expect
      .poll(async () => {
        await sql`update holdfast.idempotency_keys set lease_until = clock_timestamp() where key = ${key} and response is null`
        return idempotent(other, callOf(key), orderFor(key)).then(
          () => true,
          () => false,
        )
      })
      .toBe(true)
    await aborted
    stopped.goOn()
    await expect(stopped.result).rejects.toThrow(FencedError)
    expect(await ordersOf(key)).toHaveLength(1)
  })

  it('waits for a response, and takes over when the lease ends first', async () => {
    const key = newKey()
    const running = await startCall(key)
    const waiting = idempotent(other, callOf(key, { wait: 120_000 }), orderFor(key))
    running.goOn()
    expect(await waiting).toEqual({ ...(await running.result), replayed: true })

    const abandoned = newKey()
    const dead = await startCall(abandoned)
    const heir = idempotent(other, callOf(abandoned, { wait: 120_000 }), orderFor(abandoned))
    await endLease(abandoned)
    const { replayed, response } = await heir
    expect(replayed).toBe(false)
    dead.goOn()
    await expect(dead.result).rejects.toThrow(FencedError)
    expect(await ordersOf(abandoned)).toEqual([response.order])
  })

  it('forgets a response at its expiry, and then runs again, for any call, with a higher token', async () => {
    const key = newKey()
    await idempotent(one, callOf(key), orderFor(key))
    const { token } = (await rowOf(key))!
    await expire(key)
    const again = await idempotent(one, callOf(key, { fingerprint: 'another' }), orderFor(key))
    expect(again.replayed).toBe(false)
    const row = (await rowOf(key))!
    expect(BigInt(row.token)).toBeGreaterThan(BigInt(token))
    expect(row.expires.getTime()).toBeGreaterThan(Date.now() + 23 * 3_600_000)
    expect(await ordersOf(key)).toHaveLength(2)
  })

  it('does not expire while the work runs', async () => {
    const key = newKey()
    const long = await startCall(key)
    await expire(key)
    await expect(idempotent(other, callOf(key), orderFor(key))).rejects.toThrow(IdempotencyInFlightError)
    long.goOn()
    await long.result
    expect(await ordersOf(key)).toHaveLength(1)
  })

  it('keeps a response for its time to live from the commit on, where the work took a good part of it', async () => {
    const key = newKey()
    const long = await startCall(key, { ttlMs: 3_600_000 })
    // As if it had been claimed an hour ago.
    await sql`
      update holdfast.idempotency_keys set claimed_at = claimed_at - interval '1 hour',
        expires_at = expires_at - interval '1 hour' where key = ${key}`
    long.goOn()
    await long.result
    expect((await idempotent(one, callOf(key), orderFor(key))).replayed).toBe(true)
  })

  it('refuses work that ends its own transaction, and says so', async () => {
    const key = newKey()
    const escaping = (end: string) =>
      idempotent(one, callOf(key), async (tx) => {
        await orderFor(key)(tx)
        await tx.unsafe(end)
        return orderFor(key)(tx)
      })
    await expect(escaping('commit and chain')).rejects.toThrow(EscapedWorkError)
    await expect(escaping('rollback')).rejects.toThrow(EscapedWorkError)
    expect(await rowOf(key)).toBeUndefined()
  })

  it('refuses work that went on after an error', async () => {
    const key = newKey()
    const swallowing = idempotent(one, callOf(key), async (tx) => {
      await orderFor(key)(tx)
      await tx`select 1 / 0`.catch(() => undefined)
      return null
    })
    await expect(swallowing).rejects.toThrow(NotPreparedError)
    expect(await rowOf(key)).toBeUndefined()
    expect(await ordersOf(key)).toEqual([])
  })

  it('completes whoever the work made itself', async () => {
    await sql.unsafe(`do $$ begin create role nobody_much; exception when duplicate_object then null; end $$`)
    const key = newKey()
    const { response } = await idempotent(one, callOf(key), async (tx) => {
      const done = await orderFor(key)(tx)
      await tx`set local role nobody_much`
      return done
    })
    expect(await ordersOf(key)).toEqual([response.order])
  })

  it('stores no response that is too large or no JSON', async () => {
    const key = newKey()
    const large = idempotent(one, callOf(key, { maxResponseBytes: 10 }), async (tx) => {
      await orderFor(key)(tx)
      return 'é'.repeat(5)
    })
    await expect(large).rejects.toThrow(ResponseTooLargeError)
    await expect(idempotent(one, callOf(key), () => new Map() as unknown as Json)).rejects.toThrow(
      InvalidPayloadError,
    )
    expect(await rowOf(key)).toBeUndefined()
    expect(await ordersOf(key)).toEqual([])
    expect((await idempotent(one, callOf(key, { maxResponseBytes: 12 }), () => 'é'.repeat(5))).replayed).toBe(
      false,
    )
  })

  it.each([
    ['', 'k'],
    ['s', ''],
    ['s', 'k'.repeat(256)],
    ['s'.repeat(256), 'k'],
    ['s', 'a\u0000b'],
    ['\ud800', 'k'],
    ['s', 5 as unknown as string],
  ])('refuses the scope %j with the key %j', async (scope, key) => {
    await expect(idempotent(one, { scope, key }, () => null)).rejects.toThrow(InvalidPayloadError)
  })

  it('takes the longest scope and key, of the widest characters', async () => {
    const wide = '\u{1f600}'.repeat(127)
    const call = { scope: wide, key: '\uffff'.repeat(255) }
    expect((await idempotent(one, call, () => 1)).replayed).toBe(false)
    expect((await idempotent(one, call, () => 1)).replayed).toBe(true)
  })

  it.each([{ ttlMs: 0 }, { ttlMs: Number.NaN }, { wait: -1 }, { leaseMs: Number.POSITIVE_INFINITY }])(
    'refuses %j',
    async (wrong) => {
      await expect(idempotent(one, callOf(newKey(), wrong), () => null)).rejects.toThrow(InvalidConfigError)
    },
  )

  it('names no key in its errors', async () => {
    const key = 'secret-of-a-customer'
    await idempotent(one, callOf(key), () => null)
    const error = await idempotent(one, callOf(key, { fingerprint: 1 }), () => null).catch((e: Error) => e)
    expect(error).toBeInstanceOf(IdempotencyMismatchError)
    expect((error as Error).message).not.toContain(key)
  })
})
