import { type SQL, sql } from 'drizzle-orm'
import { drizzle, type NodePgDatabase } from 'drizzle-orm/node-postgres'
import {
  bigint,
  boolean,
  customType,
  date,
  doublePrecision,
  integer,
  interval,
  json,
  jsonb,
  numeric,
  pgTable,
  serial,
  text,
  timestamp,
  uuid,
} from 'drizzle-orm/pg-core'
import pg from 'pg'
import { describe, expect, it, onTestFinished } from 'vitest'
import type { Tx } from '../../src/db/tx.ts'
import { beginDistributed } from '../../src/jobs/begin.ts'
import { commitDistributed } from '../../src/jobs/coordinator.ts'
import { newDatabases, openContext } from '../support/database.ts'
import { exampleLimitMs, importExample, outputInReadme, runExample } from '../support/example.ts'

// Away from Greenwich, where a time without a zone that is taken for a local one shows.
process.env.TZ = 'America/Los_Angeles'

type State = { orders: string[]; jobs: string[]; shipments: string[]; events: string[]; pieces: number }
type Facts = { told: { id: string; answer: string }[]; filled: number; state: State }
type Result = { agrees: boolean; problems: string[] }

const state: State = {
  orders: ['order-1'],
  jobs: ['order-1'],
  shipments: ['order-1'],
  events: ['order-1'],
  pieces: 9,
}

describe('examples/drizzle', () => {
  it(
    'has order, job and event of what was placed, and nothing of what was not',
    async () => {
      const { code, last, stdout } = await runExample('drizzle/run.mjs')
      expect({ code, problems: last.problems }).toEqual({ code: 0, problems: [] })
      const placed = { answer: 'placed', orders: 1, jobs: 1, shipments: 1, events: 1 }
      expect(last).toMatchObject({
        agrees: true,
        stock: 12,
        orders: [
          { id: 'order-1', ...placed },
          { id: 'order-2', answer: 'refused', orders: 0, jobs: 0, shipments: 0, events: 0 },
          { id: 'order-3', ...placed },
          { id: 'order-4', ...placed },
        ],
      })
      expect(outputInReadme('drizzle')).toContain('order-3  the shop is killed')
      expect(stdout).toContain(outputInReadme('drizzle'))
    },
    exampleLimitMs,
  )

  it('says what is there without the rest', async () => {
    const { reconcile } = await importExample<{ reconcile: (facts: Facts) => Result }>(
      'drizzle/reconcile.mjs',
    )
    const problemsOf = (changes: Partial<State>, answer = 'placed') => {
      const told = [{ id: 'order-1', answer }]
      const { agrees, problems } = reconcile({ told, filled: 10, state: { ...state, ...changes } })
      expect(agrees).toBe(problems.length === 0)
      return problems
    }
    expect(problemsOf({})).toEqual([])
    expect(problemsOf({ jobs: [] })).toEqual(['order-1 was placed and has 0 jobs'])
    expect(problemsOf({ events: ['order-1', 'order-1'] })).toEqual(['order-1 was placed and has 2 events'])
    expect(problemsOf({ events: ['order-1', 'order-7'] })).toEqual([
      'nobody placed order-7, which has events',
    ])
    expect(problemsOf({ shipments: ['order-1', 'order-1'] })).toEqual([
      'order-1 was placed and has 2 shipments',
      'the stock is 9; 10 less the shipments is 8',
    ])
    expect(problemsOf({}, 'refused')).toEqual([
      'order-1 was refused and has 1 orders',
      'order-1 was refused and has 1 jobs',
      'order-1 was refused and has 1 shipments',
      'order-1 was refused and has 1 events',
    ])
  })
})

const bytea = customType<{ data: Buffer }>({ dataType: () => 'bytea' })
const things = pgTable('things', {
  id: serial().primaryKey(),
  small: integer(),
  big: bigint({ mode: 'bigint' }),
  amount: numeric(),
  ratio: doublePrecision(),
  flag: boolean(),
  docb: jsonb(),
  doc: json(),
  docs: jsonb().array(),
  wall: timestamp(),
  at: timestamp({ withTimezone: true }),
  wallText: timestamp('wall_text', { mode: 'string' }),
  atText: timestamp('at_text', { mode: 'string', withTimezone: true }),
  day: date(),
  dayAsDate: date('day_as_date', { mode: 'date' }),
  days: date().array(),
  times: timestamp().array(),
  span: interval(),
  words: text().array(),
  numbers: integer().array(),
  bytes: bytea(),
  uuid: uuid(),
  word: text(),
  missing: text(),
})
const thing: typeof things.$inferInsert = {
  small: -1,
  big: 9_007_199_254_740_993n,
  amount: '1.50',
  ratio: 1.5,
  flag: false,
  docb: { list: [1, 'a"b'], text: 'x' },
  doc: 'text alone',
  docs: [{ a: 1 }],
  wall: new Date('2026-01-02T03:04:05.678Z'),
  at: new Date('2026-07-02T03:04:05.678Z'),
  wallText: '2026-01-02 03:04:05.678',
  atText: '2026-01-02 03:04:05.678+00',
  day: '2026-01-02',
  dayAsDate: new Date('2026-01-02T00:00:00Z'),
  days: ['2026-01-02'],
  times: [new Date('2026-01-02T03:04:05Z')],
  span: '1 day 02:00:00',
  words: ['a', 'b,"c"', ''],
  numbers: [1, 2],
  bytes: Buffer.from([0, 1, 255]),
  uuid: '01990c5e-7a3b-7c41-9d52-3f0f6f2b8a11',
  word: 'true',
}

describe('a Drizzle over the tx of staged work', () => {
  it('writes and reads what Drizzle over node-postgres does, whatever the type', async () => {
    const { drizzleOver } = await importExample<{ drizzleOver: (tx: Tx) => NodePgDatabase }>(
      'drizzle/drizzle-over.mjs',
    )
    const ctx = await openContext(await newDatabases())
    const { primary } = ctx.databases
    const client = new pg.Client({ connectionString: primary.url })
    await client.connect()
    onTestFinished(() => client.end())
    const plain = drizzle(client)
    await plain.execute(sql`
      create table things (
        id serial primary key, small int, big bigint, amount numeric, ratio float8, flag bool, docb jsonb, doc json,
        docs jsonb[], wall timestamp, at timestamptz, wall_text timestamp, at_text timestamptz, day date, day_as_date date,
        days date[], times timestamp[], span interval, words text[], numbers int[], bytes bytea, uuid uuid, word text,
        missing text)`)
    const useOf = async (db: NodePgDatabase, query: SQL) => {
      const inserted = await db.insert(things).values(thing).returning()
      const found = await db.select().from(things).orderBy(things.id)
      const raw: unknown = await db.execute(query)
      const rows = Array.isArray(raw) ? raw : (raw as { rows: unknown[] }).rows
      return { inserted: inserted.map((row) => ({ ...row, id: 1 })), found: found.slice(0, 1), rows }
    }
    // What the server itself makes of it, and values that no column of Drizzle's has converted.
    const query = sql`select things::text as whole, ${new Date('2026-01-02T03:04:05Z')}::timestamptz as at, ${null}::int as no
      from things where id = ${1}`
    const measure = await useOf(plain, query)
    expect(measure.found).toEqual([{ ...thing, id: 1, missing: null }])

    let result: unknown
    await beginDistributed(ctx, 'drizzle', async (tx) => {
      await tx`truncate things restart identity`
      result = await useOf(drizzleOver(tx), query)
    })
    await commitDistributed(ctx, 'drizzle')
    expect(result).toEqual(measure)
    expect(await plain.select().from(things)).toEqual(measure.found)
  })

  it('has no transactions of its own', async () => {
    const { drizzleOver } = await importExample<{ drizzleOver: (tx: Tx) => NodePgDatabase }>(
      'drizzle/drizzle-over.mjs',
    )
    const unused = {} as Tx
    await expect(drizzleOver(unused).transaction(async () => undefined)).rejects.toThrow('not supported')
  })
})
