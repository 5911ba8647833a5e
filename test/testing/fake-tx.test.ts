import { describe, expect, it } from 'vitest'
import { sqlstateOf } from '../../src/db/sqlstate.ts'
import type { Tx } from '../../src/db/tx.ts'
import { kysely } from '../../src/kysely.ts'
import { fakeHoldfast } from '../../src/testing/index.ts'

/** Runs work in a fake transaction and returns the fake. */
async function worked(work: (tx: Tx) => unknown, prepare?: (fake: ReturnType<typeof fakeHoldfast>) => void) {
  const fake = fakeHoldfast()
  prepare?.(fake)
  await fake.beginDistributed('work_1', async (tx) => {
    await work(tx)
  })
  return fake
}

describe('what a query would send', () => {
  const day = new Date('2024-05-06T07:08:09Z')
  const sent: [what: string, query: (tx: Tx) => PromiseLike<unknown>, text: string, values: unknown[]][] = [
    ['values', (tx) => tx`select ${1} + ${'2'}`, 'select $1 + $2', [1, '2']],
    ['null and dates', (tx) => tx`select ${null}, ${day}`, 'select $1, $2', [null, day]],
    ['JSON', (tx) => tx`select ${tx.json({ a: [1] })}`, 'select $1', [{ a: [1] }]],
    ['arrays', (tx) => tx`select ${tx.array([1, 2])}`, 'select $1', [[1, 2]]],
    ['names', (tx) => tx`select 1 from ${tx('shop.orders')}`, 'select 1 from "shop"."orders"', []],
    [
      'rows',
      (tx) =>
        tx`insert into t ${tx(
          [
            { a: 1, b: 'x' },
            { a: 2, b: 'y' },
          ],
          'a',
          'b',
        )} returning ${tx('a')}`,
      'insert into t ("a","b")values($1,$2),($3,$4) returning "a"',
      [1, 'x', 2, 'y'],
    ],
    [
      'changes',
      (tx) => tx`update t set ${tx({ a: 1 })} where b = ${2}`,
      'update t set "a"=$1 where b = $2',
      [1, 2],
    ],
    ['lists', (tx) => tx`select 1 where ${0} in ${tx([7, 8])}`, 'select 1 where $1 in ($2,$3)', [0, 7, 8]],
    [
      'fragments, also in lists and in rows',
      (tx) =>
        tx`select ${tx`coalesce(${1}, ${tx('b')})`} ${[tx`and ${2}`, tx`or ${3}`]} ; insert into t ${tx({ a: tx`${4}::int` as never })}`,
      'select coalesce($1, "b") and $2 or $3 ; insert into t ("a")values($4::int)',
      [1, 2, 3, 4],
    ],
    ['text put together', (tx) => tx.unsafe('select $1 + $2', [1, 2]), 'select $1 + $2', [1, 2]],
  ]
  it.each(sent)('%s', async (_what, query, text, values) => {
    const fake = await worked(query)
    expect(fake.statements()).toEqual([{ text, values }])
  })

  it('only of queries that are awaited, in that order', async () => {
    const fake = await worked(async (tx) => {
      const first = tx`select 1`
      void tx`select 'never'`
      await tx`select 2`
      await first
    })
    expect(fake.statements().map(({ text }) => text)).toEqual(['select 2', 'select 1'])
  })

  it('refuses undefined, as the driver does', async () => {
    await expect(worked((tx) => tx`select ${undefined as never}`)).rejects.toThrow('UNDEFINED_VALUE')
  })

  it('is what Kysely compiles, with the values as they were given', async () => {
    type Schema = { users: { id: number; tags: string[] } }
    const fake = await worked((tx) =>
      kysely<Schema>(tx)
        .insertInto('users')
        .values({ id: 1, tags: ['a'] })
        .execute(),
    )
    expect(fake.statements()).toEqual([
      { text: 'insert into "users" ("id", "tags") values ($1, $2)', values: [1, ['a']] },
    ])
  })
})

describe('what a query answers', () => {
  const rows = [{ id: 1 }, { id: 2 }]

  it('with the newest answer that fits, and no rows without one', async () => {
    await worked(
      async (tx) => {
        expect(await tx`select * from orders`).toEqual(rows)
        expect(await tx`select * from ORDERS where id = ${2}`).toEqual([{ id: 2 }])
        expect(await tx`select * from users`).toEqual([])
        const result = await tx`select * from orders`
        expect([result.count, result.command, result.columns.map((c) => c.name)]).toEqual([
          2,
          'SELECT',
          ['id'],
        ])
      },
      (fake) => {
        fake.answer('from orders', [{ id: 9 }])
        fake.answer('from orders', rows)
        fake.answer(/ORDERS where/g, ({ values }) => [{ id: values[0] }])
      },
    )
  })

  it('of one database only, where it was registered for one', async () => {
    const fake = fakeHoldfast({ participants: ['billing'] })
    fake.answer(/select/, rows, 'billing')
    const work = async (tx: Tx) => (await tx`select 1`).length
    const { staged } = await fake.beginDistributed('both', { primary: work, billing: work })
    expect(staged).toEqual({ primary: 0, billing: 2 })
  })

  it('row by row, page by page, as arrays', async () => {
    await worked(
      async (tx) => {
        const seen: unknown[] = []
        await tx`select 1`.forEach((row) => seen.push(row))
        expect(seen).toEqual(rows)
        const pages: unknown[] = []
        for await (const page of tx`select 1`.cursor(1)) pages.push(page)
        expect(pages).toEqual([[{ id: 1 }], [{ id: 2 }]])
        for await (const page of tx`select 1`.cursor(1)) {
          expect(page).toEqual([{ id: 1 }])
          break
        }
        expect(await tx`select 1`.values()).toEqual([[1], [2]])
      },
      (fake) => fake.answer('select', rows),
    )
  })

  it('with an error, after which only a savepoint goes on', async () => {
    const conflict = Object.assign(new Error('duplicate key'), { code: '23505' })
    const refuse = (fake: ReturnType<typeof fakeHoldfast>) => fake.answer('insert', conflict)
    await worked(async (tx) => {
      await expect(tx.savepoint((inner) => inner`insert into t values (1)`)).rejects.toBe(conflict)
      await tx`select 1`
    }, refuse)
    await expect(worked((tx) => tx`insert into t values (1)`, refuse)).rejects.toBe(conflict)
    const swallowed = worked(async (tx) => {
      await tx`insert into t values (1)`.catch(() => undefined)
      await expect(tx`select 1`).rejects.toSatisfy((error) => sqlstateOf(error) === '25P02')
    }, refuse)
    await expect(swallowed).rejects.toMatchObject({
      code: 'HOLDFAST_NOT_PREPARED',
      message: expect.stringContaining('tx.savepoint'),
    })
  })

  it('not once the transaction has ended', async () => {
    let kept: Tx | undefined
    await worked((tx) => {
      kept = tx
    })
    await expect(kept!`select 1`).rejects.toThrow('this transaction handle has ended')
  })
})
