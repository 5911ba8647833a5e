import { type Generated, Kysely, PostgresDialect, sql } from 'kysely'
import pg from 'pg'
import { afterAll, afterEach, describe, expect, it } from 'vitest'
import { InvalidConfigError } from '../src/db/errors.ts'
import { sqlstateOf } from '../src/db/sqlstate.ts'
import type { Tx } from '../src/db/tx.ts'
import { beginDistributed } from '../src/jobs/begin.ts'
import { commitDistributed, rollbackDistributed } from '../src/jobs/coordinator.ts'
import { kysely } from '../src/kysely.ts'
import { newDatabases, openContext } from './support/database.ts'
import { preparedGids } from './support/prepared-gids.ts'

// West of Greenwich a date that is taken for midnight UTC is the day before.
process.env.TZ = 'America/Los_Angeles'

type Schema = {
  users: { id: number; name: string; seen: Generated<number> }
  things: { id: Generated<number> } & Record<(typeof columns)[number], unknown>
}
const columns = [
  'flag',
  'small',
  'big',
  'amount',
  'ratio',
  'words',
  'numbers',
  'grid',
  'day',
  'wall',
  'at',
  'days',
  'doc',
  'docb',
  'docs',
  'bytes',
  'blobs',
  'id2',
] as const

const ctx = await openContext(await newDatabases())
const { primary } = ctx.databases
await primary.sql.unsafe(`
  create table users (id int primary key, name text not null, seen int not null default 0);
  create table things (
    id int generated always as identity primary key, flag bool, small int2, big int8, amount numeric, ratio float8,
    words text[], numbers int[], grid int[][], day date, wall timestamp, at timestamptz, days date[],
    doc json, docb jsonb, docs jsonb[], bytes bytea, blobs bytea[], id2 uuid)`)

/** Kysely as its users know it, over node-postgres: the measure. */
const plain = new Kysely<Schema>({
  dialect: new PostgresDialect({ pool: new pg.Pool({ connectionString: primary.url }) }),
})
afterAll(() => plain.destroy())

let serial = 0
/** Runs work in a transaction that is prepared and committed. */
async function committed<T>(work: (db: Kysely<Schema>, tx: Tx) => Promise<T>): Promise<T> {
  const name = `kysely_${++serial}`
  let result: T | undefined
  await beginDistributed(ctx, name, async (tx) => {
    result = await work(kysely<Schema>(tx), tx)
  })
  await commitDistributed(ctx, name)
  return result as T
}

afterEach(async () => {
  expect(await preparedGids(ctx)).toEqual([])
})

describe('a Kysely over staged work', () => {
  const insert = (id: number) => (tx: Tx) =>
    kysely<Schema>(tx).insertInto('users').values({ id, name: 'Ada' }).returning(['id', 'seen']).execute()
  const count = async (id: number) => (await primary.sql`select from users where id = ${id}`).length

  it('writes what appears with the commit', async () => {
    const { staged } = await beginDistributed(ctx, 'user_1', insert(1))
    expect(staged).toEqual([{ id: 1, seen: 0 }])
    expect(await count(1)).toBe(0)
    await commitDistributed(ctx, 'user_1')
    expect(await count(1)).toBe(1)
  })

  it('writes what a rollback undoes', async () => {
    await beginDistributed(ctx, 'user_2', insert(2))
    await rollbackDistributed(ctx, 'user_2', 'cancelled')
    expect(await count(2)).toBe(0)
  })

  it('counts the rows that a statement changed, and no rows that it read', async () => {
    const results = await committed(async (db) => {
      const rows = [4, 5, 6].map((id) => ({ id, name: `user ${id}` }))
      const inserted = await db.insertInto('users').values(rows).executeTakeFirst()
      const updated = await db.updateTable('users').set({ seen: 1 }).where('id', '>', 4).executeTakeFirst()
      const deleted = await db.deleteFrom('users').where('id', '=', 4).executeTakeFirst()
      const missed = await db.deleteFrom('users').where('id', '=', 4).executeTakeFirst()
      const read = await db.executeQuery(db.selectFrom('users').select('id').where('id', '>', 4).compile())
      return [inserted.numInsertedOrUpdatedRows, updated.numUpdatedRows, deleted.numDeletedRows]
        .concat(missed.numDeletedRows)
        .concat([read.numAffectedRows, BigInt(read.rows.length)] as never)
    })
    expect(results).toEqual([3n, 2n, 1n, 0n, undefined, 2n])
  })

  it('runs queries side by side, raw SQL, and what Kysely asks of the catalog', async () => {
    await committed(async (db) => {
      const sums = await Promise.all(
        [1, 2, 3].map((i) => sql<{ n: number }>`select ${i}::int as n`.execute(db)),
      )
      expect(sums.flatMap((sum) => sum.rows)).toEqual([{ n: 1 }, { n: 2 }, { n: 3 }])
      expect(await sql`set local work_mem = '1MB'; select 1`.execute(db)).toMatchObject({ rows: [] })
      const tables = await db.introspection.getTables()
      expect(tables.map((table) => table.name)).toEqual(expect.arrayContaining(['things', 'users']))
      await db.destroy()
    })
  })

  it('lets a savepoint undo a part', async () => {
    await committed(async (db, tx) => {
      await db.insertInto('users').values({ id: 7, name: 'Bo' }).execute()
      const twice = tx.savepoint((inner) => insert(7)(inner))
      await expect(twice).rejects.toSatisfy((error) => sqlstateOf(error) === '23505')
    })
    expect(await count(7)).toBe(1)
  })

  it('passes on the refusal of a transaction that has ended', async () => {
    const db = await committed(async (inside) => inside)
    await expect(db.selectFrom('users').selectAll().execute()).rejects.toThrow(
      'this transaction handle has ended',
    )
  })
})

describe('what would end the transaction, or keep it open', () => {
  const refused: [what: string, use: (db: Kysely<Schema>) => Promise<unknown>][] = [
    ['transaction()', (db) => db.transaction().execute(async () => 1)],
    ['startTransaction()', (db) => db.startTransaction().execute()],
    ['a raw commit', (db) => sql`commit`.execute(db)],
    ['a raw rollback', (db) => sql`  ROLLBACK work`.execute(db)],
    ['a raw begin', (db) => sql`start transaction`.execute(db)],
    ['PREPARE TRANSACTION', (db) => sql`prepare transaction 'x'`.execute(db)],
    [
      'a stream',
      async (db) => {
        for await (const row of db.selectFrom('users').selectAll().stream()) return row
        return undefined
      },
    ],
  ]
  it.each(refused)('refuses %s and goes on', async (_what, use) => {
    const rows = await committed(async (db) => {
      await expect(use(db)).rejects.toThrow(InvalidConfigError)
      return (await sql`select 1 as one`.execute(db)).rows
    })
    expect(rows).toEqual([{ one: 1 }])
  })

  it('lets a rollback to a savepoint pass', async () => {
    await committed(async (db) => {
      await sql`savepoint a`.execute(db)
      await expect(sql`rollback to savepoint a`.execute(db)).resolves.toBeDefined()
      await expect(sql`rollback transaction to a`.execute(db)).resolves.toBeDefined()
    })
  })
})

describe('values and rows are those of PostgresDialect:', () => {
  const when = new Date('2024-03-09T23:30:00.125-08:00')
  const values: [what: string, thing: Partial<Schema['things']>][] = [
    ['booleans', { flag: true }],
    ['booleans as text', { flag: 'true' }],
    ['numbers', { small: 7, big: 8, amount: 1.5, ratio: 0.1 }],
    ['numbers as text', { small: '7', amount: '12345678901234567890.5' }],
    ['a bigint', { big: 9007199254740993n, amount: 2n }],
    ['null', { flag: null, words: null, docb: null, at: null }],
    [
      'arrays',
      {
        words: ['a', 'b "c" \\ {d}, é', null, ''],
        numbers: [1, null, 3],
        grid: [
          [1, 2],
          [3, 4],
        ],
      },
    ],
    ['empty arrays', { words: [], numbers: [] }],
    ['dates', { day: when, wall: when, at: when, days: [when, null] }],
    ['dates as text', { day: '2024-03-10', at: '2024-03-10T07:30:00Z' }],
    ['an object as JSON', { doc: { a: [1, { b: null }] }, docb: { b: 'x', a: 'ü"\\' } }],
    ['JSON that was made with JSON.stringify', { doc: JSON.stringify([1]), docb: JSON.stringify(['a', 2]) }],
    ['arrays of JSON', { docs: [{ a: 1 }, { b: '"' }] }],
    ['bytes', { bytes: Buffer.from([0, 1, 255]) }],
    ['bytes of another view', { bytes: new Uint8Array([9, 8, 7, 6]).subarray(1, 3) }],
    ['arrays of bytes', { blobs: [Buffer.from([0, 92, 34]), null] }],
    ['a uuid', { id2: '0190b2c4-0000-7000-8000-000000000001' }],
    [
      'what serialises itself',
      { words: { toPostgres: (prepare: (v: unknown) => unknown) => prepare(['z']) } },
    ],
  ]
  it.each(values)('%s', async (_what, thing) => {
    const insert = (db: Kysely<Schema>) =>
      db
        .insertInto('things')
        .values(thing as never)
        .returning(columns)
        .executeTakeFirstOrThrow()
    const ours = await committed(insert)
    expect(ours).toEqual(await insert(plain))
  })

  it('in conditions too', async () => {
    const found = (db: Kysely<Schema>) =>
      db
        .selectFrom('things')
        .select(columns)
        .where('at', '=', when)
        .where('day', '<=', when)
        .where(sql<boolean>`${2}::int = any(${[1, 2]})`)
        .where('docb', 'is', null)
        .limit(1)
        .execute()
    expect(await committed(found)).toEqual(await found(plain))
    expect(await found(plain)).toHaveLength(1)
  })

  it('and errors keep their SQLSTATE', async () => {
    const name = 'kysely_error'
    const work = (tx: Tx) => sql`insert into users (id, name) values (${'x'}, 'y')`.execute(kysely(tx))
    await expect(beginDistributed(ctx, name, work)).rejects.toSatisfy((e) => sqlstateOf(e) === '22P02')
  })
})
