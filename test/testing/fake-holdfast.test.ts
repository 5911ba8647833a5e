import { describe, expect, it, vi } from 'vitest'
import { deferred } from '../../src/db/deferred.ts'
import type { Status } from '../../src/db/distributed-transactions.ts'
import type { Tx } from '../../src/db/tx.ts'
import { moveFor, transitions } from '../../src/jobs/transitions.ts'
import { fakeHoldfast } from '../../src/testing/index.ts'
import type { Holdfast } from '../../src/workers/holdfast.ts'

const work = async (tx: Tx) => {
  await tx`insert into orders values (1)`
  return { id: 1 }
}
const code = (name: string) => expect.objectContaining({ code: `HOLDFAST_${name}` })

/** Whatever the real one can, for the calls that it has, can be called on the fake: this only has to compile. */
export function takesItsPlace(): Pick<Holdfast, keyof Holdfast & keyof ReturnType<typeof fakeHoldfast>> {
  return fakeHoldfast<string>()
}

describe('begin, commit, rollback', () => {
  it('has the shapes of the real one', async () => {
    const fake = fakeHoldfast({ participants: ['billing'] })
    const begun = await fake.beginDistributed('order_1', {
      primary: work,
      billing: async () => ({ at: new Date(0) }),
    })
    expect(begun).toEqual({
      name: 'order_1',
      attempt: expect.stringMatching(/^[0-9a-f]{32}$/),
      staged: { primary: { id: 1 }, billing: { at: '1970-01-01T00:00:00.000Z' } },
      tokens: {},
    })
    expect(fake.transactions).toMatchObject([{ name: 'order_1', status: 'pending', attempt: begun.attempt }])
    const done = { state: 'committed', finished: 2, of: 2 }
    expect(await fake.commitDistributed('order_1')).toEqual(done)
    expect(await fake.commitDistributed('order_1')).toEqual(done)
    await expect(fake.rollbackDistributed('order_1')).rejects.toEqual(code('COMMITTED'))
    await expect(fake.beginDistributed('order_1', work)).rejects.toEqual(code('NAME_IN_USE'))
  })

  it('rolls back, stays so, and frees the name', async () => {
    const fake = fakeHoldfast()
    await fake.beginDistributed('order_2', work)
    await expect(fake.beginDistributed('order_2', work)).rejects.toEqual(code('NAME_IN_USE'))
    const done = { state: 'rolled_back', finished: 1, of: 1 }
    expect(await fake.rollbackDistributed('order_2', 'cancelled')).toEqual(done)
    expect(await fake.rollbackDistributed('order_2', 'again')).toEqual(done)
    await expect(fake.commitDistributed('order_2')).rejects.toThrow('cancelled')
    await expect(fake.commitDistributed('order_2')).rejects.toEqual(code('ROLLED_BACK'))
    await fake.beginDistributed('order_2', work)
    await fake.commitDistributed('order_2')
    expect(fake.transactions.map(({ status }) => status)).toEqual(['rolled_back', 'committed'])
  })

  it('moves only as the table of transitions lets it', async () => {
    const fake = fakeHoldfast()
    await fake.beginDistributed('a', work)
    await fake.commitDistributed('a')
    await fake.beginDistributed('b', work)
    await fake.rollbackDistributed('b')
    await fake.beginDistributed('c', work)
    await fake.expire('c')
    await expect(fake.beginDistributed('d', () => Promise.reject(new Error('own')))).rejects.toThrow('own')
    const histories = fake.transactions.map(({ history }) => history)
    expect(histories).toEqual([
      ['started', 'pending', 'committing', 'committed'],
      ['started', 'pending', 'rolling_back', 'rolled_back'],
      ['started', 'pending', 'rolling_back', 'cleaned_up'],
      ['started', 'rolling_back', 'rolled_back'],
    ])
    expect(moveFor('all-committed')).toEqual({ from: ['committing'], to: 'committed' })
    for (const history of histories) {
      for (const [i, status] of history.slice(0, -1).entries())
        expect(Object.values(transitions[status as Status])).toContain(history[i + 1])
    }
  })

  it('refuses what the real one refuses', async () => {
    const fake = fakeHoldfast({ participants: ['billing'] })
    await expect(fake.beginDistributed('jane@example.com', work)).rejects.toEqual(code('INVALID_NAME'))
    await expect(fake.beginDistributed('outbox:x', work)).rejects.toEqual(code('INVALID_NAME'))
    await expect(fake.commitDistributed("a'b")).rejects.toEqual(code('INVALID_NAME'))
    await expect(fake.commitDistributed('never')).rejects.toEqual(code('UNKNOWN_TRANSACTION'))
    await expect(fake.beginDistributed('x', { warehouse: work } as never)).rejects.toEqual(
      code('UNKNOWN_PARTICIPANT'),
    )
    await expect(fake.beginDistributed('x', {})).rejects.toEqual(code('INVALID_CONFIG'))
    await expect(fake.beginDistributed('x', async () => 1n)).rejects.toEqual(code('INVALID_PAYLOAD'))
    await expect(fake.beginDistributed('x', work, { awaits: ['billing'] })).rejects.toEqual(
      code('INVALID_CONFIG'),
    )
    expect(() => fake.statements('warehouse' as never)).toThrow('warehouse')
  })

  it('is not prepared while the work runs, and can be rolled back meanwhile', async () => {
    const fake = fakeHoldfast()
    const begun = fake.beginDistributed('slow', async () => {
      await expect(fake.commitDistributed('slow')).rejects.toEqual(code('NOT_PREPARED'))
      expect(await fake.outcome('slow')).toMatchObject({ state: 'unknown' })
      await fake.rollbackDistributed('slow', 'too slow')
    })
    await expect(begun).rejects.toEqual(code('FENCED'))
  })

  it('tells the outcome and lists what is open', async () => {
    const fake = fakeHoldfast()
    expect(await fake.outcome('order_3')).toMatchObject({ state: 'never', evidence: { attempt: null } })
    await fake.beginDistributed('order_3', work)
    expect(await fake.outcome('order_3')).toMatchObject({
      state: 'prepared',
      evidence: { status: 'pending' },
    })
    expect(await fake.listDistributed()).toMatchObject([{ name: 'order_3' }])
    await fake.commitDistributed('order_3')
    expect(await fake.outcome('order_3')).toMatchObject({ state: 'committed' })
    expect(await fake.listDistributed()).toEqual([])
    expect(await fake.listDistributed({ status: 'committed' })).toMatchObject([{ name: 'order_3' }])
  })
})

describe('publish', () => {
  it('records events with what became of their transaction', async () => {
    const fake = fakeHoldfast()
    const publish = (type: string) => async (tx: Tx) => {
      await fake.publish(tx, { type, subject: 'order-1', data: { total: 2 } })
      await tx
        .savepoint(async (inner) => {
          await fake.publish(inner, { type: 'undone' })
          throw new Error('no')
        })
        .catch(() => undefined)
    }
    await fake.beginDistributed('a', publish('order.placed'))
    await fake.beginDistributed('b', publish('order.cancelled'))
    expect(fake.events.map(({ type, state }) => [type, state])).toEqual([
      ['order.placed', 'pending'],
      ['order.cancelled', 'pending'],
    ])
    await fake.commitDistributed('a')
    await fake.rollbackDistributed('b')
    expect(fake.events).toMatchObject([
      { type: 'order.placed', subject: 'order-1', data: { total: 2 }, transaction: 'a', state: 'committed' },
      { type: 'order.cancelled', transaction: 'b', state: 'rolled_back' },
    ])
    expect(fake.statements()).toEqual([])
  })

  it('records those of a transaction of the caller, and refuses what is no event and no transaction', async () => {
    const fake = fakeHoldfast()
    const query = vi.fn(async () => undefined)
    const ids = await fake.publish({ query }, [{ type: 'a' }, { type: 'b' }])
    expect(query).toHaveBeenCalledOnce()
    expect(fake.events).toMatchObject(ids.map((id) => ({ id, state: 'unknown', transaction: null })))
    await expect(fake.publish({ query }, { type: '' })).rejects.toEqual(code('INVALID_PAYLOAD'))
    await expect(fake.publish({} as never, { type: 'a' })).rejects.toEqual(code('INVALID_PAYLOAD'))
  })
})

describe('once', () => {
  const once = (fake: ReturnType<typeof fakeHoldfast>, id: string) => (tx: Tx) => fake.once(tx, 'mailer', id)

  it('is forgotten with its transaction and with a savepoint, and shows in no statement', async () => {
    const fake = fakeHoldfast()
    const undone = async (tx: Tx) => {
      await tx
        .savepoint(async (inner) => {
          expect(await fake.once(inner, 'mailer', '1')).toBe(true)
          throw new Error('no')
        })
        .catch(() => undefined)
      return once(fake, '1')(tx)
    }
    expect(await fake.beginDistributed('a', undone)).toMatchObject({ staged: true })
    await fake.rollbackDistributed('a')
    expect(await fake.beginDistributed('b', once(fake, '1'))).toMatchObject({ staged: true })
    await fake.commitDistributed('b')
    expect(await fake.beginDistributed('c', once(fake, '1'))).toMatchObject({ staged: false })
    const failing = fake.beginDistributed('d', async (tx) => {
      await fake.once(tx, 'mailer', '2')
      throw new Error('own')
    })
    await expect(failing).rejects.toThrow('own')
    expect(await fake.beginDistributed('e', once(fake, '2'))).toMatchObject({ staged: true })
    expect(fake.statements()).toEqual([])
  })

  it.each(['commit', 'rollback', 'deadline'])('waits for the %s of who has seen it before', async (end) => {
    const fake = fakeHoldfast()
    await fake.beginDistributed('first', once(fake, '1'))
    const asked = vi.fn()
    const [second, third] = ['second', 'third'].map((name) =>
      fake.beginDistributed(name, async (tx) => {
        asked()
        return once(fake, '1')(tx)
      }),
    )
    const ended = vi.fn()
    void second?.then(ended)
    void third?.then(ended)
    await vi.waitFor(() => expect(asked).toHaveBeenCalledTimes(2))
    // Whatever could go on by itself has done so after a turn of the event loop.
    await new Promise((resolve) => setImmediate(resolve))
    expect(ended).not.toHaveBeenCalled()
    if (end === 'commit') await fake.commitDistributed('first')
    else if (end === 'rollback') await fake.rollbackDistributed('first')
    else await fake.expire('first')
    const isNew = end !== 'commit'
    expect(await second).toMatchObject({ staged: isNew })
    // After a rollback one of the two has it, and the other waits for that one.
    await fake.commitDistributed('second')
    expect(await third).toMatchObject({ staged: false })
  })

  it('goes on when the savepoint is undone in which it was seen', async () => {
    const fake = fakeHoldfast()
    const [seen, undo] = [deferred<void>(), deferred<void>()]
    const first = fake.beginDistributed('first', (tx) =>
      tx
        .savepoint(async (inner) => {
          await fake.once(inner, 'mailer', '1')
          seen.resolve()
          await undo.promise
          throw new Error('undone')
        })
        .catch(() => null),
    )
    await seen.promise
    const second = fake.beginDistributed('second', once(fake, '1'))
    undo.resolve()
    expect(await second).toMatchObject({ staged: true })
    await first
  })

  it('is answered by a transaction of the caller, and refuses what is none and what is no id', async () => {
    const fake = fakeHoldfast()
    const query = vi.fn(async (_text: string, [, id]: unknown[]) => ({ rows: id === '1' ? [{}] : [] }))
    expect(await fake.once({ query }, 'mailer', '1')).toBe(true)
    expect(await fake.once({ query }, 'mailer', '2')).toBe(false)
    expect(query).toHaveBeenCalledTimes(2)
    await expect(fake.once({ query }, 'mailer', '')).rejects.toEqual(code('INVALID_PAYLOAD'))
    await expect(fake.once({} as never, 'mailer', '1')).rejects.toEqual(code('INVALID_PAYLOAD'))
    const pool = { query, totalCount: 0 }
    await expect(fake.once(pool, 'mailer', '1')).rejects.toEqual(code('INVALID_PAYLOAD'))
    await expect(fake.publish(pool, { type: 'a' })).rejects.toEqual(code('INVALID_PAYLOAD'))
  })
})

describe('deadlines and compensation', () => {
  it('runs the compensation of the operation once, when it was pending', async () => {
    const compensate = vi.fn()
    const fake = fakeHoldfast({ operations: { pay: { compensate } } })
    const begun = await fake.beginDistributed('pay_1', work, { operation: 'pay', metadata: { a: 1 } })
    await fake.expire('pay_1')
    await fake.expire('pay_1')
    expect(compensate).toHaveBeenCalledExactlyOnceWith(
      expect.objectContaining({
        name: 'pay_1',
        attempt: begun.attempt,
        staged: { id: 1 },
        metadata: { a: 1 },
        reason: 'past its deadline',
        idempotencyKey: expect.any(String),
      }),
    )
    expect(fake.transactions).toMatchObject([
      { status: 'cleaned_up', abortCause: 'deadline', compensation: 'done', compensationError: undefined },
    ])
    await expect(fake.commitDistributed('pay_1')).rejects.toEqual(code('ROLLED_BACK'))
  })

  it('changes nothing about what was committed', async () => {
    const fake = fakeHoldfast()
    await fake.beginDistributed('pay_2', work)
    await fake.commitDistributed('pay_2')
    await fake.expire('pay_2')
    expect(fake.transactions).toMatchObject([{ status: 'committed', compensation: 'none' }])
  })

  it('keeps a compensation due until it succeeds', async () => {
    const failure = new Error('bank closed')
    const compensate = vi.fn().mockRejectedValueOnce(failure)
    const fake = fakeHoldfast({ operations: { pay: { compensate } } })
    await fake.beginDistributed('pay_3', work, { operation: 'pay' })
    await fake.rollbackDistributed('pay_3')
    expect(await fake.listDistributed()).toMatchObject([
      { name: 'pay_3', status: 'rolled_back', compensation: 'due', compensationError: failure },
    ])
    await fake.expire('pay_3')
    expect(fake.transactions).toMatchObject([{ compensation: 'done', compensationError: undefined }])
    expect(await fake.listDistributed()).toEqual([])
  })
})
