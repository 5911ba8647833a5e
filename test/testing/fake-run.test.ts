import { describe, expect, it, vi } from 'vitest'
import { deferred } from '../../src/db/deferred.ts'
import type { Tx } from '../../src/db/tx.ts'
import { fakeHoldfast } from '../../src/testing/index.ts'

const code = (name: string) => expect.objectContaining({ code: `HOLDFAST_${name}` })

describe('runDistributed', () => {
  it('stages, runs the effects, commits, and answers again with what was stored', async () => {
    const fake = fakeHoldfast({ participants: ['billing'] })
    const stage = { primary: vi.fn(async (tx: Tx) => (await tx`select 1`).length), billing: async () => 'b' }
    const effects = vi.fn(async ({ staged }: { staged: { primary: number; billing: string } }) => {
      expect(fake.transactions).toMatchObject([{ status: 'pending' }])
      return { receipt: staged.billing, at: new Date(0) }
    })
    const first = await fake.runDistributed('order_1', { stage, effects })
    expect(first).toEqual({
      state: 'committed',
      name: 'order_1',
      attempt: fake.transactions[0]?.attempt,
      staged: { primary: 0, billing: 'b' },
      result: { receipt: 'b', at: '1970-01-01T00:00:00.000Z' },
    })
    expect(await fake.runDistributed('order_1', { stage, effects })).toEqual(first)
    expect(stage.primary).toHaveBeenCalledOnce()
    expect(effects).toHaveBeenCalledOnce()
  })

  it('needs no effects', async () => {
    const fake = fakeHoldfast()
    expect(await fake.runDistributed('order_2', { stage: () => 7 })).toMatchObject({
      staged: 7,
      result: null,
    })
  })

  it('rolls back, compensates once and rethrows when the effects fail; then the name is free', async () => {
    const fake = fakeHoldfast()
    const declined = new Error('declined')
    const compensate = vi.fn()
    const keys: string[] = []
    const effects = vi.fn(async ({ idempotencyKey }: { idempotencyKey: string }) => {
      keys.push(idempotencyKey)
      if (keys.length === 1) throw declined
    })
    const options = { operation: 'pay', stage: () => ({ id: 1 }), effects, compensate }
    await expect(fake.runDistributed('order_3', options)).rejects.toBe(declined)
    expect(compensate).toHaveBeenCalledExactlyOnceWith(
      expect.objectContaining({
        staged: { id: 1 },
        reason: 'declined',
        idempotencyKey: `${keys[0]}:compensate`,
      }),
    )
    expect(await fake.runDistributed('order_3', options)).toMatchObject({ state: 'committed' })
    expect(compensate).toHaveBeenCalledOnce()
    expect(keys[1]).not.toBe(keys[0])
  })

  it('compensates nothing when the staging fails', async () => {
    const compensate = vi.fn()
    const fake = fakeHoldfast({ operations: { pay: { compensate } } })
    const stage = () => Promise.reject(new Error('no stock'))
    await expect(fake.runDistributed('order_4', { operation: 'pay', stage })).rejects.toThrow('no stock')
    expect(compensate).not.toHaveBeenCalled()
    expect(fake.transactions).toMatchObject([{ status: 'rolled_back', compensation: 'none' }])
  })

  it('aborts the signal at the deadline, and compensates once the effects are back', async () => {
    const compensate = vi.fn()
    const fake = fakeHoldfast()
    const effects = async ({ signal }: { signal: AbortSignal }) => {
      expect(signal.aborted).toBe(false)
      await fake.expire('order_5')
      expect(signal.aborted).toBe(true)
      expect(compensate).not.toHaveBeenCalled()
    }
    const run = fake.runDistributed('order_5', { operation: 'pay', stage: () => 1, effects, compensate })
    await expect(run).rejects.toEqual(code('ROLLED_BACK'))
    expect(compensate).toHaveBeenCalledOnce()
    expect(fake.transactions).toMatchObject([{ status: 'cleaned_up', compensation: 'done' }])
  })

  it('holds its name while it runs, also against its like', async () => {
    const fake = fakeHoldfast()
    const stage = () => 1
    await fake.runDistributed('order_6', {
      stage,
      effects: async () => {
        await expect(fake.runDistributed('order_6', { stage })).rejects.toEqual(code('NAME_IN_USE'))
      },
    })
    await fake.beginDistributed('order_7', stage)
    await expect(fake.runDistributed('order_7', { stage })).rejects.toEqual(code('NAME_IN_USE'))
  })

  it('goes on after a crash with what was staged and with the same key', async () => {
    const fake = fakeHoldfast()
    const stage = vi.fn(() => ({ id: 1 }))
    const compensate = vi.fn()
    const keys: string[] = []
    const hangs = fake.runDistributed('order_8', {
      operation: 'pay',
      stage,
      compensate,
      effects: async ({ idempotencyKey }) => {
        keys.push(idempotencyKey)
        fake.crash('order_8')
        await deferred<void>().promise
      },
    })
    await expect(hangs).rejects.toThrow('crashed')
    expect(fake.transactions).toMatchObject([{ status: 'pending', owner: null, compensation: 'none' }])
    const again = await fake.runDistributed('order_8', {
      stage,
      effects: ({ idempotencyKey, staged }) => void keys.push(idempotencyKey, String(staged.id)),
    })
    expect(again).toMatchObject({ state: 'committed', staged: { id: 1 } })
    expect(stage).toHaveBeenCalledOnce()
    expect(keys).toEqual([keys[0], keys[0], '1'])
    expect(() => fake.crash('order_8')).toThrow('no run of order_8')
  })

  it('forgets in a crash the compensation that the run brought along, unlike that of the operation', async () => {
    const own = vi.fn()
    const declared = vi.fn()
    const fake = fakeHoldfast({ operations: { pay: { compensate: declared } } })
    for (const operation of ['pay', 'other']) {
      const effects = () => fake.crash(operation)
      const run = fake.runDistributed(operation, { operation, stage: () => 1, effects, compensate: own })
      await expect(run).rejects.toThrow('crashed')
      await fake.expire(operation)
    }
    expect(own).not.toHaveBeenCalled()
    expect(declared).toHaveBeenCalledOnce()
    expect(fake.transactions.map(({ compensation }) => compensation)).toEqual(['done', 'due'])
  })

  it('asks for the operation of a compensation', async () => {
    const run = fakeHoldfast().runDistributed('order_9', { stage: () => 1, compensate: () => undefined })
    await expect(run).rejects.toEqual(code('INVALID_CONFIG'))
  })
})

describe('votes', () => {
  const awaiting = async () => {
    const fake = fakeHoldfast({ services: ['email', 'parcel'] })
    const begun = await fake.beginDistributed('trip_1', () => 1, { awaits: ['email', 'parcel'] })
    return { fake, tokens: begun.tokens }
  }

  it('commits with the last ready', async () => {
    const { fake } = await awaiting()
    await expect(fake.commitDistributed('trip_1')).rejects.toEqual(code('VOTES_OUTSTANDING'))
    const pending = { state: 'pending', votes: { ready: 1, of: 2 } }
    expect(await fake.vote('trip_1', 'email', 'ready')).toEqual(pending)
    expect(await fake.vote('trip_1', 'email', 'ready')).toEqual(pending)
    await expect(fake.vote('trip_1', 'email', 'abort')).rejects.toEqual(code('VOTE_CONFLICT'))
    await expect(fake.vote('trip_1', 'bank', 'ready')).rejects.toEqual(code('UNKNOWN_PARTICIPANT'))
    await expect(fake.vote('trip_1', 'parcel', 'maybe' as never)).rejects.toEqual(code('INVALID_CONFIG'))
    const committed = { state: 'committed', votes: { ready: 2, of: 2 } }
    expect(await fake.vote('trip_1', 'parcel', 'ready')).toEqual(committed)
    expect(await fake.vote('trip_1', 'parcel', 'ready')).toEqual(committed)
    expect(await fake.commitDistributed('trip_1')).toMatchObject({ state: 'committed' })
  })

  it('rolls back with the first abort', async () => {
    const { fake } = await awaiting()
    expect(await fake.vote('trip_1', 'email', 'abort', { reason: 'full' })).toEqual({
      state: 'rolled_back',
      votes: { ready: 0, of: 2 },
    })
    expect(await fake.vote('trip_1', 'email', 'abort')).toMatchObject({ state: 'rolled_back' })
    await expect(fake.vote('trip_1', 'parcel', 'ready')).rejects.toEqual(code('ROLLED_BACK'))
    await expect(fake.commitDistributed('trip_1')).rejects.toThrow('email voted abort: full')
    expect(fake.transactions).toMatchObject([{ abortCause: 'vote' }])
  })

  it('checks a token that is given', async () => {
    const { fake, tokens } = await awaiting()
    await expect(fake.vote('trip_1', 'email', 'ready', { token: tokens.parcel! })).rejects.toEqual(
      code('NOT_ALLOWED'),
    )
    await fake.vote('trip_1', 'email', 'ready', { token: tokens.email! })
  })

  it('counts what comes while the work still runs', async () => {
    const fake = fakeHoldfast()
    const early = (vote: 'ready' | 'abort') => async () => {
      expect(await fake.vote(vote, 'email', vote)).toMatchObject({ state: 'started' })
    }
    await fake.beginDistributed('ready', early('ready'), { awaits: ['email'] })
    expect(await fake.outcome('ready')).toMatchObject({ state: 'committed' })
    const aborted = fake.beginDistributed('abort', early('abort'), { awaits: ['email'] })
    await expect(aborted).rejects.toThrow('email voted abort')
  })

  it('knows only the services that the fake was given', async () => {
    const { fake } = await awaiting()
    await expect(fake.beginDistributed('trip_2', () => 1, { awaits: ['bank'] })).rejects.toEqual(
      code('INVALID_CONFIG'),
    )
  })
})
