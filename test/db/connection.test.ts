import { afterAll, describe, expect, it } from 'vitest'
import { Databases } from '../../src/db/databases.ts'
import { isConnectionLoss } from '../../src/db/sqlstate.ts'
import type { Tx } from '../../src/db/tx.ts'
import { newDatabase } from '../support/database.ts'

const databases = new Databases({ primary: await newDatabase() }, { queries: 2, staging: 2 })
const { primary } = databases
const killer = new Databases({ primary: primary.url })
await primary.sql`create table kept (id int)`
afterAll(async () => {
  await databases.end()
  await killer.end()
})

async function pidOf(tx: Tx): Promise<number> {
  const [row] = await tx<{ pid: number }[]>`select pg_backend_pid() as pid`
  return row!.pid
}

async function cut(pid: number): Promise<void> {
  // The second argument waits until the backend is gone.
  await killer.primary.sql`select pg_terminate_backend(${pid}, 5000)`
}

describe('a connection that is lost', () => {
  it('rejects the query under way, every later one, and leaves process and pool alive', async () => {
    for (let round = 0; round < 5; round++) {
      const failure = await primary
        .transaction(async (tx) => {
          const pid = await pidOf(tx)
          const asleep = tx`select pg_sleep(60)`.then(
            () => 'woke',
            (error: unknown) => error,
          )
          await cut(pid)
          expect(isConnectionLoss(await asleep)).toBe(true)
          await expect(tx`select 1`).rejects.toSatisfy(isConnectionLoss)
          await expect(tx.unsafe('select 1')).rejects.toSatisfy(isConnectionLoss)
          return 'never'
        })
        .catch((error: unknown) => error)
      expect(isConnectionLoss(failure)).toBe(true)
    }
    expect(await primary.transaction((tx) => tx`select 1 as one`)).toEqual([{ one: 1 }])
  })

  it('is noticed while the work waits for something else', async () => {
    const outcome = primary.transaction(async (tx) => {
      await cut(await pidOf(tx))
      await new Promise(() => undefined)
    })
    await expect(outcome).rejects.toSatisfy(isConnectionLoss)
  })
})

describe('a query that the driver cannot send', () => {
  const alone = new Databases({ primary: primary.url }, { queries: 1 })
  const { sql } = alone.primary
  afterAll(() => alone.end())
  const unsendable: {
    what: string
    error: RegExp
    send: (tx: Tx) => Promise<unknown>
    known?: (tx: Tx) => Promise<unknown>
  }[] = [
    {
      what: 'an undefined value',
      error: /Undefined values are not allowed/,
      send: (tx) => tx`insert into kept values (${undefined as never})`,
    },
    {
      what: 'a row with an undefined value',
      error: /Undefined values are not allowed/,
      send: (tx) => tx`insert into kept ${tx({ id: undefined })}`,
    },
    {
      what: 'JSON with a bigint in it',
      error: /serialize a BigInt/,
      known: (tx) => tx`select ${tx.json({ value: 1 })}::jsonb`,
      send: (tx) => tx`select ${tx.json({ value: 1n } as never)}::jsonb`,
    },
  ]

  it.each(unsendable)(
    'because of $what says so at once, also behind one that waits for its answer',
    async ({ error, known, send }) => {
      const outcome = alone.primary.transaction(async (tx) => {
        // Only a statement that the connection knows is made into messages as a whole before it is sent.
        await known?.(tx)
        tx`select pg_sleep(60)`.catch(() => undefined)
        await send(tx)
      })
      await expect(outcome).rejects.toThrow(error)
      await expect(alone.primary.transaction(send)).rejects.toThrow(error)
      expect(await alone.primary.transaction((tx) => tx`select 1 as one`)).toEqual([{ one: 1 }])
    },
  )

  it('gives nobody the answer of another', async () => {
    await sql`select 1`
    const [first, unsent, last] = await Promise.allSettled([
      sql`select 'first' as text, pg_sleep(0.1)`,
      sql`select ${undefined as never} as text`,
      sql`select 'last' as text`,
    ])

    expect(first).toMatchObject({ reason: { code: 'CONNECTION_CLOSED' } })
    expect(unsent).toMatchObject({ reason: { code: 'UNDEFINED_VALUE' } })
    expect(last).toMatchObject({ value: [{ text: 'last' }] })
  })
})

describe('a plain transaction', () => {
  it('commits what it returns from and rolls back what it throws from', async () => {
    await primary.transaction((tx) => tx`insert into kept values (1)`)
    await expect(
      primary.transaction(async (tx) => {
        await tx`insert into kept values (2)`
        throw new Error('changed my mind')
      }),
    ).rejects.toThrow('changed my mind')
    expect(await primary.sql`select id from kept`).toEqual([{ id: 1 }])
  })

  it('does not pretend to commit when the work swallowed an error', async () => {
    await expect(
      primary.transaction(async (tx) => {
        await tx`select 1/0`.catch(() => undefined)
        return 'fine'
      }),
    ).rejects.toThrow('after a statement had failed')
  })

  it('ends its handle: a query that nobody awaited lands nowhere', async () => {
    const stray = await primary.transaction(async (tx) => ({ query: tx`insert into kept values (3)` }))
    await expect(stray.query).rejects.toThrow('has ended')
    expect(await primary.sql`select id from kept where id = 3`).toEqual([])
  })

  it('undoes a failed savepoint alone', async () => {
    await primary.transaction(async (tx) => {
      await tx`insert into kept values (10)`
      await tx
        .savepoint(async (inner) => {
          await inner`insert into kept values (11)`
          await inner`select 1/0`
        })
        .catch(() => undefined)
      await tx`insert into kept values (12)`
    })
    expect(await primary.sql`select id from kept where id >= 10 order by id`).toEqual([
      { id: 10 },
      { id: 12 },
    ])
  })

  it('gives its connection back, however it ends, and waits for one when all are in use', async () => {
    const many = Array.from({ length: 20 }, (_, i) =>
      primary.transaction(async (tx) => {
        await tx`select ${i}::int`
        if (i % 2 === 1) throw new Error('odd')
        return i
      }),
    )
    const settled = await Promise.allSettled(many)
    expect(settled.filter((s) => s.status === 'fulfilled')).toHaveLength(10)
    const [row] = await primary.sql<{ open: number }[]>`
      select count(*)::int as open from pg_stat_activity where datname = current_database() and state like 'idle in%'`
    expect(row?.open).toBe(0)
  })
})
