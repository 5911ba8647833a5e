import { beforeAll, describe, expect, it } from 'vitest'
import type { Json } from '../../../src/db/json.ts'
import type { Tx } from '../../../src/db/tx.ts'
import { type KeysetOptions, keyset } from '../../../src/jobs/keyset.ts'
import { explained, nodesOf, rangesOf, readKeys, sharedDatabase } from './keyset-rows.ts'

const database = sharedDatabase()
const count = 100_000

/** `fillfactor`: so that the tables have more blocks than one sample takes. */
const tables = `
  create table numbers (id bigint primary key, kind int, pad text) with (autovacuum_enabled = off);
  insert into numbers select g * 3, g % 10 + 1, repeat('x', 300) from generate_series(1, ${count}) g;
  analyze numbers;

  create table fresh (id uuid primary key, pad text) with (autovacuum_enabled = off);
  insert into fresh select md5(g::text)::uuid, repeat('x', 300) from generate_series(1, ${count}) g;

  create table words (id text collate "de-x-icu" primary key, pad text) with (autovacuum_enabled = off);
  insert into words select md5(g::text), repeat('x', 300) from generate_series(1, ${count}) g;

  create table libc (id text collate "C.utf8" primary key);
  insert into libc select (g % 97) || 'ä' || g from generate_series(1, ${count}) g;

  create table pairs (a int not null, b int, c int, pad text, unique nulls not distinct (a, b, c))
    with (autovacuum_enabled = off);
  insert into pairs select g % 3, nullif(g % 500, 7), g, repeat('x', 300) from generate_series(1, ${count}) g;

  create table parts (id int not null, at int not null, pad text, primary key (at, id)) partition by range (at);
  create table parts_1 partition of parts for values from (0) to (2) with (autovacuum_enabled = off);
  create table parts_2 partition of parts for values from (2) to (9) with (autovacuum_enabled = off);
  insert into parts select g, g % 5, repeat('x', 300) from generate_series(1, ${count}) g;

  create view inner_view as select pad, id as number from numbers;
  create view v as select number, 1 as one from inner_view where number > 0;
  create materialized view m as select * from numbers;
  create table small as select g as id from generate_series(1, 10) g;
  alter table small add primary key (id);
  analyze small`

const sources: [string, KeysetOptions, string][] = [
  ['a table', { table: 'numbers', key: ['id'] }, 'select id from numbers order by id'],
  ['a table that was never analysed', { table: 'fresh', key: ['id'] }, 'select id from fresh order by id'],
  ['text under an ICU collation', { table: 'words', key: ['id'] }, 'select id from words order by id'],
  ['text under a libc collation', { table: 'libc', key: ['id'] }, 'select id from libc order by id'],
  [
    'several columns with null',
    { table: 'pairs', key: ['a', { column: 'b', nulls: 'first' }, { column: 'c', nulls: 'last' }] },
    'select a, b, c from pairs order by a, b nulls first, c nulls last',
  ],
  ['partitions', { table: 'parts', key: ['at', 'id'] }, 'select at, id from parts order by at, id'],
  ['a view of a view', { table: 'v', key: ['number'] }, 'select number from v order by number'],
  ['a materialised view', { table: 'm', key: ['id'] }, 'select id from m order by id'],
  [
    'a query',
    { query: 'select n.id as n, s.id as s from numbers n join small s on s.id = n.kind', key: ['n'] },
    'select id from numbers order by id',
  ],
  [
    'a query whose key no table has',
    { query: 'select id / 3 as n from numbers', key: ['n'] },
    'select id / 3 as n from numbers order by n',
  ],
]

describe('the parts of a large source', () => {
  let sql: Tx
  beforeAll(async () => {
    sql = (await database()).sql
    await sql.unsafe(tables)
  })

  it.each(sources)(
    'of %s are about the same, and have together every row once',
    async (_what, options, all) => {
      const source = keyset(options)
      const expected = (await sql.unsafe(all)).map((row) =>
        Object.values(row as Record<string, number | string | null>).map(text),
      )
      const parts = 8
      const { rows, boundaries } = await source.split!(sql, null, null, parts)
      expect(Math.abs(rows - count)).toBeLessThan(count / 4)
      expect(boundaries).toHaveLength(parts - 1)
      const keys: Json[] = []
      const sizes: number[] = []
      for (const { after, until } of rangesOf(null, boundaries, null)) {
        const part = await readKeys(source, sql, [5_000], after, until)
        keys.push(...part)
        sizes.push(part.length)
      }
      expect(keys.length).toBe(expected.length)
      expect(keys.every((key, i) => JSON.stringify(key) === JSON.stringify(expected[i]))).toBe(true)
      expect(Math.max(...sizes) / Math.min(...sizes)).toBeLessThan(2)
    },
  )

  it.each(sources)('of a part of %s are too', async (_what, options, all) => {
    const source = keyset(options)
    const expected = (await sql.unsafe(all)).map((row) =>
      Object.values(row as Record<string, number | string | null>).map(text),
    )
    for (const [from, to] of [
      [40_000, 90_000],
      [60_000, 63_000],
      [70_000, 70_001],
    ] as const) {
      const [after, until] = [expected[from]!, expected[to]!]
      const { rows, boundaries } = await source.split!(sql, after, until, 2)
      expect(Math.abs(rows - (to - from))).toBeLessThanOrEqual(to - from > 20_000 ? (to - from) / 3 : 0)
      expect(boundaries).toHaveLength(to - from === 1 ? 0 : 1)
      const at = boundaries.map((boundary) =>
        expected.findIndex((key) => JSON.stringify(key) === JSON.stringify(boundary)),
      )
      for (const cut of at) {
        expect(cut - from).toBeGreaterThan((to - from) / 3)
        expect(to - cut).toBeGreaterThan((to - from) / 3)
      }
    }
  })

  it('are found from a sample of its blocks', async () => {
    const source = keyset({ table: 'numbers', key: ['id'] })
    const watched = explained(sql)
    await source.split!(watched.sql, null, null, 4)
    const nodes = watched.plans.flatMap(nodesOf).filter((node) => node['Relation Name'] === 'numbers')
    expect(nodes.map((node) => node['Node Type'])).toContain('Sample Scan')
    for (const node of nodes) {
      if (node['Node Type'] === 'Sample Scan') {
        expect((node['Shared Hit Blocks'] as number) + (node['Shared Read Blocks'] as number)).toBeLessThan(
          2_300,
        )
        expect(node['Actual Rows']).toBeLessThan(25_000)
      } else expect(node['Actual Rows']).toBeLessThanOrEqual(20_001)
    }
  })

  it('are fewer where there are not enough rows', async () => {
    const small = keyset({ table: 'small', key: ['id'] })
    expect(await small.split!(sql, null, null, 1)).toEqual({ rows: 10, boundaries: [] })
    expect(await small.split!(sql, null, null, 3)).toEqual({ rows: 10, boundaries: [['3'], ['6']] })
    expect(await small.split!(sql, ['7'], null, 9)).toEqual({ rows: 3, boundaries: [['8'], ['9']] })
    expect(await small.split!(sql, ['7'], ['8'], 2)).toEqual({ rows: 1, boundaries: [] })
    expect(await small.split!(sql, ['10'], null, 2)).toEqual({ rows: 0, boundaries: [] })
    await expect(small.split!(sql, null, null, 0)).rejects.toThrow('no number of parts')
  })

  it('are cut between different keys alone, where a sample has one often', async () => {
    // Of 94,001 keys one has 3,000 rows and the last has 3,001.
    await sql`create table repeated as
      select case when g between 5000 and 7999 then 5000 else least(g, 97000) end as id from generate_series(1, 100000) g`
    const source = keyset({ query: 'select distinct id from repeated', key: ['id'] })
    const { boundaries } = await source.split!(sql, null, ['97000'], 200)
    const ids = boundaries.map((boundary) => Number((boundary as string[])[0]))
    expect(ids.length).toBeGreaterThan(150)
    expect(ids).toEqual([...new Set(ids)].toSorted((a, b) => a - b))
    expect(ids).not.toContain(97_000)
  })

  it('are none where rows are many and there is no table to take a sample of', async () => {
    const source = keyset({ query: 'select g as id from generate_series(1, 250000) g', key: ['id'] })
    expect(await source.split!(sql, null, null, 4)).toEqual({ rows: 250_000, boundaries: [] })
  })
})

const text = (value: number | string | null): string | null => (value === null ? null : String(value))
