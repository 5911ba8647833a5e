import fc from 'fast-check'
import { beforeAll, describe, expect, it } from 'vitest'
import { InvalidConfigError, SourceKeyError } from '../../../src/db/errors.ts'
import type { Json } from '../../../src/db/json.ts'
import type { Tx } from '../../../src/db/tx.ts'
import { defineBatch } from '../../../src/jobs/batch-definition.ts'
import { enqueueBatchJob } from '../../../src/jobs/enqueue-batch.ts'
import { type KeysetColumn, type KeysetOptions, keyset } from '../../../src/jobs/keyset.ts'
import { runBatch } from '../../../src/jobs/run-batch.ts'
import { explained, nodesOf, rangesOf, readKeys, sharedDatabase } from './keyset-rows.ts'

const newSql = sharedDatabase()

const orders: {
  what: string
  /** of the table t, with what proves that its rows differ */
  columns: string
  key: KeysetColumn[]
  /** the order in SQL, said once more */
  order: string
  /** of each column; few, so that rows share them */
  values: (string | null)[][]
  /** read through this instead */
  query?: string
}[] = [
  {
    what: 'text under an ICU collation',
    columns: 'id text collate "de-x-icu" primary key',
    key: ['id'],
    order: 'id',
    values: [['a', 'B', 'ä', 'Z', 'z', 'b', '', ' ', 'a b', 'ab', '-ab', 'é', "o'x", '"', '漢']],
  },
  {
    what: 'uuid',
    columns: 'id uuid primary key',
    key: ['id'],
    order: 'id',
    values: [Array.from({ length: 16 }, (_, i) => `${i.toString(16).repeat(8)}-0000-4000-8000-000000000000`)],
  },
  {
    what: 'several columns',
    columns: 'a int not null, b text collate "en-x-icu" not null, primary key (b, a)',
    key: ['a', 'b'],
    order: 'a, b',
    values: [
      ['-1', '2', '10'],
      ['a', 'B', 'b', 'Ä'],
    ],
  },
  {
    what: 'an enum, a time with microseconds and a numeric',
    columns: 'a mood not null, b timestamptz not null, c numeric not null, primary key (a, b, c)',
    key: ['a', 'b', 'c'],
    order: 'a, b, c',
    values: [
      ['sad', 'ok', 'happy'],
      ['2020-01-01 00:00:00.000001+00', '2020-01-01 00:00:00.000002+00', '1880-01-01 00:00:00+00'],
      ['1', '1.5', '-0.00000000000000000000001', '12345678901234567890.5', 'NaN'],
    ],
  },
  {
    what: 'text that is equal in other letters, under the collation of a domain',
    columns: 'a ci not null, b int, unique nulls not distinct (a, b)',
    key: ['a', { column: 'b', nulls: 'last' }],
    order: 'a, b nulls last',
    values: [
      ['a', 'A', 'b', 'B'],
      ['1', '2', null],
    ],
  },
  {
    what: 'a column whose collation is not that of its domain',
    columns: 'a ci collate "C" primary key',
    key: ['a'],
    order: 'a',
    values: [['a', 'A', 'b', 'B', 'aB', 'Ab']],
  },
  {
    what: 'numbers that are equal in other digits, and null',
    columns: 'a numeric, b int, unique nulls not distinct (a, b)',
    key: [
      { column: 'a', nulls: 'first' },
      { column: 'b', nulls: 'last' },
    ],
    order: 'a nulls first, b nulls last',
    values: [
      ['1', '1.0', '1.00', '2', null],
      ['1', '2', '3', null],
    ],
  },
  {
    what: 'null at the end of one column',
    columns: 'id text collate "de-x-icu", unique nulls not distinct (id)',
    key: [{ column: 'id', nulls: 'last' }],
    order: 'id nulls last',
    values: [['a', 'B', '', 'null', null]],
  },
  {
    what: 'null at the beginning of one column',
    columns: 'id int, unique nulls not distinct (id)',
    key: [{ column: 'id', nulls: 'first' }],
    order: 'id nulls first',
    values: [['1', '2', '3', null]],
  },
  {
    what: 'null at both ends of three columns',
    columns: 'a int, b text, c int, unique nulls not distinct (a, b, c)',
    key: [
      { column: 'a', nulls: 'last' },
      { column: 'b', nulls: 'first' },
      { column: 'c', nulls: 'last' },
    ],
    order: 'a nulls last, b nulls first, c nulls last',
    values: [
      ['1', '2', null],
      ['x', 'y', null],
      ['1', '2', null],
    ],
  },
  {
    what: 'null between columns that have none',
    columns: 'a int not null, b int, c int not null, primary key (a, c)',
    key: ['a', { column: 'b', nulls: 'first' }, 'c'],
    order: 'a, b nulls first, c',
    values: [
      ['1', '2'],
      ['1', '2', null],
      ['1', '2', '3', '4'],
    ],
  },
  {
    what: 'a query',
    columns: 'a ci not null, b int not null, unique (a, b)',
    query: 'select o.b, o.a, c.x from t o join (select 1 as x) c on true -- its end',
    key: ['a', 'b'],
    order: 'a, b',
    values: [
      ['a', 'A', 'b'],
      ['1', '2', '3'],
    ],
  },
  {
    what: 'a query with null in its key',
    columns: 'a int, b text collate "en-x-icu", unique nulls not distinct (a, b)',
    query: 'select * from t where true',
    key: [
      { column: 'a', nulls: 'first' },
      { column: 'b', nulls: 'last' },
    ],
    order: 'a nulls first, b nulls last',
    values: [
      ['1', '2', null],
      ['a', 'B', 'ä', null],
    ],
  },
]

const types = `
  create type mood as enum ('sad', 'ok', 'happy');
  create collation nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
  create domain ci as text collate nocase`

describe('a keyset, by a key of', () => {
  it.each(orders)('$what, reads every row of every range once and in order', async (order) => {
    const { sql } = await newSql()
    await sql.unsafe(types)
    await sql.unsafe(`create table t (${order.columns})`)
    const { key, values, query } = order
    const source = keyset(query === undefined ? { table: 't', key } : { query, key })
    const names = key.map((entry) => (typeof entry === 'string' ? entry : entry.column))
    const run = fc.record({
      rows: fc.array(fc.tuple(...values.map((of) => fc.constantFrom(...of))), { maxLength: 40 }),
      sizes: fc.array(fc.integer({ min: 1, max: 6 }), { minLength: 1, maxLength: 3 }),
      ends: fc.array(fc.nat({ max: 40 }), { minLength: 2, maxLength: 2 }),
      open: fc.record({ after: fc.boolean(), until: fc.boolean() }),
      parts: fc.integer({ min: 1, max: 6 }),
    })
    await fc.assert(
      fc.asyncProperty(run, async ({ rows, sizes, ends, open, parts }) => {
        await sql`truncate t`
        await sql`insert into t (${sql.unsafe(names.join(', '))}) select ${sql.unsafe(
          names.map((name) => `(r ->> '${name}')::text::${typeOf(order.columns, name)}`).join(', '),
        )} from jsonb_array_elements(${JSON.stringify(
          rows.map((row) => Object.fromEntries(row.map((value, i) => [names[i], value]))),
        )}::text::jsonb) r on conflict do nothing`
        const found = await sql.unsafe(
          `select array_to_json(array[${names.map((n) => `${n}::text`).join(', ')}]) as key from t order by ${order.order}`,
        )
        const all = found.map((row) => row.key as Json)
        // An end is the key of any row, or one that has none any more.
        const [from, to] = ends
          .map((end) => (all.length === 0 ? -1 : end % all.length))
          .toSorted((a, b) => a - b)
        const after = open.after || from === -1 ? null : all[from!]!
        const until = open.until || to === -1 ? null : all[to!]!
        const expected = all.slice(after === null ? 0 : from! + 1, until === null ? all.length : to! + 1)
        expect(await readKeys(source, sql, sizes, after, until)).toEqual(expected)

        const { rows: counted, boundaries } = await source.split!(sql, after, until, parts)
        expect(counted).toBe(expected.length)
        expect(boundaries).toHaveLength(Math.min(parts, Math.max(1, expected.length)) - 1)
        const cut = []
        let digest = 0n
        for (const range of rangesOf(after, boundaries, until)) {
          const part = await readKeys(source, sql, sizes, range.after, range.until)
          if (expected.length > 0) expect(part).not.toHaveLength(0)
          cut.push(...part)
          const one = await source.digest!(sql, range.after, range.until ?? part.at(-1) ?? null)
          expect(one.rows).toBe(BigInt(part.length))
          digest += one.digest
        }
        expect(cut).toEqual(expected)
        const whole = await source.digest!(sql, after, expected.at(-1) ?? null)
        expect(BigInt.asIntN(64, digest)).toBe(whole.digest)
      }),
      { numRuns: 40 },
    )
  })
})

/** The type of a column as the table declares it. */
const typeOf = (columns: string, name: string) => new RegExp(`(?:^|, )${name} (\\w+)`).exec(columns)![1]!

describe('a keyset', () => {
  it('returns rows as the database gives them, whatever it looks at besides', async () => {
    const { sql } = await newSql()
    await sql`create table "Odd ""t" ("The ""Key" int primary key, b jsonb)`
    await sql`insert into "Odd ""t" values (1, '{"x": [1]}'), (2, null)`
    await sql`create view v as select * from "Odd ""t"`
    const rows = [
      { 'The "Key': 1, b: { x: [1] } },
      { 'The "Key': 2, b: null },
    ]
    for (const options of [
      { table: 'Odd "t', key: ['The "Key'] },
      { table: 'public.v', key: ['The "Key'] },
      { query: 'table v', key: [{ column: 'The "Key', nulls: 'last' }] },
    ] satisfies KeysetOptions[]) {
      const chunk = await keyset(options).read(sql, null, 5)
      expect([...chunk.rows]).toEqual(rows)
      expect(chunk).toMatchObject({ keys: [['1'], ['2']], cursor: ['2'], last: true })
    }
  })

  it('knows the last chunk by the row that does not follow it', async () => {
    const { sql } = await newSql()
    await sql`create table t as select g as id from generate_series(1, 20) g`
    await sql`alter table t add primary key (id)`
    const source = keyset({ table: 't', key: ['id'] })
    expect(await source.read(sql, ['9'], 10)).toMatchObject({ cursor: ['19'], last: false })
    expect(await source.read(sql, ['10'], 10)).toMatchObject({ cursor: ['20'], last: true })
    expect(await source.read(sql, ['5'], 10, ['15'])).toMatchObject({ cursor: ['15'], last: true })
    expect(await source.read(sql, ['20'], 10)).toMatchObject({ rows: [], cursor: ['20'], last: true })
    // What it read, without the one more.
    expect((await source.read(sql, null, 10)).digest).toBe((await source.digest!(sql, null, ['10'])).digest)
  })

  it('counts what is cheap to count, and takes the planner’s estimate of the rest', async () => {
    const { sql } = await newSql()
    await sql`create table t as select g as id from generate_series(1, 300000) g`
    await sql`alter table t add primary key (id)`
    await sql`create view v as select * from t`
    await sql`analyze t`
    const few = keyset({ query: 'select id from t where id <= 5000', key: ['id'] })
    expect(await few.count!(sql)).toEqual({ rows: 5000n, exact: true })
    for (const source of [
      keyset({ table: 't', key: ['id'] }),
      keyset({ table: 'v', key: ['id'] }),
      keyset({ query: 'select * from t', key: ['id'] }),
    ]) {
      const { rows, exact } = await source.count!(sql)
      expect(exact).toBe(false)
      expect(Math.abs(Number(rows) - 300_000)).toBeLessThan(30_000)
    }
  })

  it('says what it reads from', () => {
    expect(keyset({ table: 't', key: ['id'], database: 'billing' })).toMatchObject({
      database: 'billing',
      tables: ['t'],
    })
    expect(keyset({ query: 'select 1', key: ['id'] })).not.toHaveProperty('database')
    expect(keyset({ query: 'select 1', key: ['id'] })).not.toHaveProperty('tables')
    expect(keyset({ query: 'select 1', key: ['id'], tables: ['a', 'b.c'] })).toMatchObject({
      tables: ['a', 'b.c'],
    })
    expect(keyset({ table: 'v', key: ['id'], tables: ['t'] })).toMatchObject({ tables: ['t'] })
  })

  it('refuses options that are wrong, all at once', () => {
    const bad = {
      table: 'a.b.c',
      query: ' ',
      tables: ['x.'],
      key: [{ column: 'a', nulls: 'here' }, 'a', ''],
      database: '',
    }
    const make = () => keyset(bad as unknown as KeysetOptions)
    expect(make).toThrow(InvalidConfigError)
    expect(make).toThrow(
      /either a table or a query.*"a.b.c".*"x\.".*SELECT.*participant.*"here".*no name.*twice/s,
    )
    expect(() => keyset({ table: 't', key: [] })).toThrow('at least one key column')
    expect(() => keyset({ key: ['id'] } as unknown as KeysetOptions)).toThrow('either a table or a query')
  })

  it('refuses a cursor of another key', async () => {
    const { sql } = await newSql()
    const source = keyset({ table: 't', key: ['a', { column: 'b', nulls: 'last' }] })
    for (const cursor of [['1'], [null, '1'], ['1', 2], 'x', { byte: 5 }])
      await expect(source.read(sql, cursor, 1)).rejects.toThrow('does not fit the key (a, b)')
  })
})

describe('a table whose rows could share a key', () => {
  const tables = `
    create table plain (id int not null, a int not null, b int, c text collate "C" not null, primary key (id, a));
    create table proofs (a int not null, b int, c int not null, d text collate nocase not null, e int not null);
    create unique index on proofs (a) where c > 0;
    create unique index on proofs ((a + 1));
    create unique index on proofs (c, b);
    create unique index on proofs (d collate "C");
    create unique index on proofs (e) include (a);
    create table parent (id int primary key);
    create table child () inherits (parent);
    create table parts (id int not null, at int not null, primary key (at, id)) partition by range (at);
    create table parts_1 partition of parts for values from (0) to (10);
    create table maybe (a int not null, b int, unique nulls not distinct (b))`

  it.each<[string, KeysetColumn[], string]>([
    [
      'plain',
      ['a'],
      'rows of plain can have the same key (a), so some would be skipped; add "id" of its primary key',
    ],
    ['plain', ['c'], 'add "id" and "a" of its primary key to the end of the key'],
    ['plain', ['b'], `column plain.b may be null; say where null goes: { column: "b", nulls: 'last' }`],
    ['proofs', ['a'], 'add "e" of its unique index'],
    ['proofs', ['c', { column: 'b', nulls: 'last' }], 'rows of proofs can have the same key (c, b)'],
    ['proofs', ['d'], 'rows of proofs can have the same key (d)'],
    ['parts', ['id'], 'add "at" of its primary key'],
    ['maybe', ['a'], 'add "b" of its unique index'],
    ['nowhere', ['a'], 'there is no table nowhere on the primary database'],
    ['plain', ['x', 'y'], 'has no column x'],
    ['plain_pkey', ['id'], 'neither a table nor a view'],
  ])('%s by %j is refused before its first row', async (table, key, message) => {
    const { sql } = await newSql()
    await sql.unsafe(types)
    await sql.unsafe(tables)
    const source = keyset({ table, key })
    await expect(source.read(sql, null, 1)).rejects.toThrow(InvalidConfigError)
    await expect(source.read(sql, null, 1)).rejects.toThrow(message)
  })

  it.each<[string, KeysetColumn[]]>([
    ['plain', ['id', 'a']],
    ['plain', ['c', 'a', 'id']],
    ['proofs', ['e']],
    ['proofs', ['a', 'e']],
    ['parts', ['id', 'at']],
    ['maybe', [{ column: 'b', nulls: 'first' }, 'a']],
    // Its index knows nothing of the child's rows, so these are compared.
    ['parent', ['id']],
  ])('%s by %j is not', async (table, key) => {
    const { sql } = await newSql()
    await sql.unsafe(types)
    await sql.unsafe(tables)
    expect(await keyset({ table, key }).read(sql, null, 1)).toMatchObject({ rows: [], last: true })
  })

  it('says so of an index that is gone when a job begins', async () => {
    const { sql } = await newSql()
    await sql`create table t (id int primary key)`
    const source = keyset({ table: 't', key: ['id'] })
    expect(await source.read(sql, null, 1)).toMatchObject({ last: true })
    await sql`alter table t drop constraint t_pkey`
    await sql`alter table t alter id set not null`
    await expect(source.read(sql, null, 1)).rejects.toThrow('can have the same key')
  })

  it('has no chunk', async () => {
    const { ctx, sql } = await newSql()
    await sql`create table source as select g / 3 as id from generate_series(1, 30) g`
    await sql`alter table source alter id set not null`
    const { outcome, error, jobId } = await runCopy(ctx, { table: 'source', key: ['id'] })
    expect(outcome).toBe('failed')
    expect(error).toContain('can have the same key (id)')
    expect(await sql`select 1 from holdfast.batch_positions where job_id = ${jobId}`).toEqual([])
  })
})

async function runCopy(ctx: Awaited<ReturnType<typeof newSql>>['ctx'], options: KeysetOptions) {
  const { sql } = ctx.databases.primary
  await sql`create table target (id int)`
  const batch = defineBatch({
    name: 'copy',
    source: keyset<{ id: number | null }>(options),
    chunkSize: 10,
    async process(rows, { tx }) {
      for (const { id } of rows) await tx`insert into target values (${id})`
    },
  })
  const { jobId } = await enqueueBatchJob(ctx, batch, {}, 'test')
  const timing = { maxFailures: 2, backoffMs: 1, maxBackoffMs: 2 }
  const outcome = await runBatch(
    ctx,
    new Map([[batch.name, batch]]),
    jobId,
    new AbortController().signal,
    timing,
  )
  const [job] = await sql`select error from holdfast.batch_jobs where id = ${jobId}`
  return { outcome, error: job?.error as string | null, jobId }
}

describe('rows of a view or a query', () => {
  const views: [string, KeysetOptions][] = [
    ['view', { table: 'v', key: ['id'] }],
    ['materialised view', { table: 'm', key: ['id'] }],
    ['parent table', { table: 'parent', key: ['id'] }],
    ['query', { query: 'select id, secret from t', key: ['id'] }],
  ]

  it.each(views)(
    'of a %s that share a key fail where they stand, and nothing is skipped',
    async (_what, options) => {
      // At the end of a chunk, within one, at its beginning, and at the very end of all.
      for (const twice of [20, 15, 30]) {
        const { ctx, sql } = await newSql()
        await sql`create table t as select g as id, 'secret' as secret from generate_series(1, 30) g`
        await sql`insert into t values (${twice}, 'secret')`
        await sql`create view v as select * from t`
        await sql`create materialized view m as select * from t`
        await sql`create table parent (id int primary key, secret text)`
        await sql`create table child () inherits (parent)`
        await sql`insert into child select * from t`
        const { outcome, error } = await runCopy(ctx, options)
        expect(outcome).toBe('failed')
        expect(error).toContain('several rows have the same key (id)')
        expect(error).not.toContain('secret')
        const done = await sql<{ id: number }[]>`select id from target order by id`
        const whole = Math.floor((twice - 1) / 10) * 10
        expect(done.map(({ id }) => id)).toEqual(Array.from({ length: whole }, (_, i) => i + 1))
      }
    },
  )

  it.each(views)('of a %s that have null in the key fail when their turn comes', async (_what, options) => {
    const { ctx, sql } = await newSql()
    await sql`create table t as select g as id, 'secret' as secret from generate_series(1, 25) g`
    await sql`insert into t values (null, 'secret')`
    await sql`create view v as select * from t`
    await sql`create materialized view m as select * from t`
    await sql`create table parent (id int, secret text)`
    await sql`create table child () inherits (parent)`
    await sql`insert into child select * from t`
    const { outcome, error } = await runCopy(ctx, options)
    expect(outcome).toBe('failed')
    expect(error).toContain(
      `null in its key (id); leave such rows out, or say where null goes: { column: 'id', nulls: 'last' }`,
    )
    expect(await sql`select count(*)::int from target`).toEqual([{ count: 20 }])
    await sql`drop table target`
    const allowed = await runCopy(ctx, { ...options, key: [{ column: 'id', nulls: 'last' }] })
    expect(allowed.outcome).toBe('completed')
    expect(await sql`select count(*)::int, count(distinct id)::int as ids from target`).toEqual([
      { count: 26, ids: 25 },
    ])
  })

  it('that share a key as the collation has it are found, although they differ as text', async () => {
    const { sql } = await newSql()
    await sql.unsafe(types)
    await sql`create view v as select x::ci as id from unnest(array['a', 'b', 'B', 'c']) x`
    const reading = keyset({ table: 'v', key: ['id'] }).read(sql, null, 2)
    await expect(reading).rejects.toThrow(SourceKeyError)
  })

  it('of which one is null in a later column are found in the midst of the others', async () => {
    const { sql } = await newSql()
    await sql`create view v as select a, nullif(b, 3) as b from generate_series(1, 3) a, generate_series(1, 3) b`
    const source = keyset({ table: 'v', key: ['a', 'b'] })
    expect(await readKeys(source, sql, [1], null, ['1', '2'])).toEqual([
      ['1', '1'],
      ['1', '2'],
    ])
    await expect(source.read(sql, ['1', '2'], 1)).rejects.toThrow(SourceKeyError)
  })

  it.each([
    ['select $1::int as id', 'there is no parameter $1'],
    ['update t set id = 1 returning id', 'syntax error'],
    ['with gone as (delete from t returning id) select * from gone', 'data-modifying'],
    ['select 1 as id; drop table t', 'syntax error'],
    ['select 1 as other', 'has no column id'],
    ['select 1 as id, 2 as id', 'several of its columns are called id'],
  ])('are not read from %s', async (query, message) => {
    const { sql } = await newSql()
    await sql`create table t (id int)`
    const reading = keyset({ query, key: ['id'] }).read(sql, null, 1)
    await expect(reading).rejects.toThrow(InvalidConfigError)
    await expect(reading).rejects.toThrow(message)
    expect(await sql`select * from t`).toEqual([])
  })
})

describe('a chunk of a large table', () => {
  const tables = `
    create table wide (a int not null, b int, c int not null, d text collate "de-x-icu" not null, pad text);
    insert into wide select g / 1000, nullif(g % 1000, 7), g, 'k' || g, repeat('x', 100) from generate_series(1, 200000) g;
    create unique index on wide (c);
    create unique index on wide (d);
    create unique index on wide (a, c);
    create table holes as select * from wide;
    alter table holes alter a set not null, alter c set not null;
    create unique index on holes (a, b) nulls not distinct;
    create unique index on holes (a, b nulls first) nulls not distinct;
    create unique index on holes (c);
    create index on holes (b, c);
    create table kinds as select g as kind, 'x' as name from generate_series(0, 2) g;
    create view v as select * from holes where b is not null;
    analyze`
  let sql: Tx
  beforeAll(async () => {
    sql = (await newSql()).sql
    await sql.unsafe(tables)
  })
  const ab = (nulls: 'first' | 'last'): KeysetColumn[] => ['a', { column: 'b', nulls }]

  it.each<[string, KeysetOptions, Json, Json]>([
    ['one column', { table: 'wide', key: ['c'] }, ['100000'], ['150000']],
    ['text', { table: 'wide', key: ['d'] }, ['k3'], ['k5']],
    ['two columns', { table: 'wide', key: ['a', 'c'] }, ['100', '100000'], ['150', '150000']],
    ['null last', { table: 'holes', key: ab('last') }, ['100', '990'], ['150', '3']],
    ['null first', { table: 'holes', key: ab('first') }, ['100', '990'], ['150', '3']],
    ['at a null', { table: 'holes', key: ab('last') }, ['100', null], ['150', null]],
    [
      'null in the first column',
      { table: 'holes', key: [{ column: 'b', nulls: 'last' }, 'c'] },
      ['5', '7'],
      ['900', '7'],
    ],
    ['a view', { table: 'v', key: ['a', 'b'] }, ['100', '990'], ['150', '3']],
    [
      'a query',
      { query: 'select w.*, k.name from wide w join kinds k on k.kind = w.c % 3', key: ['c'] },
      ['100000'],
      ['150000'],
    ],
  ])('is read through the index: %s', async (_what, options, after, until) => {
    for (const range of [
      [null, null],
      [after, null],
      [null, until],
      [after, until],
    ] as const) {
      const source = keyset(options)
      await source.read(sql, null, 1)
      const watched = explained(sql)
      // From the beginning the key is described anew, by a statement that reads no table of the user.
      expect((await source.read(watched.sql, range[0], 50, range[1])).rows).toHaveLength(50)
      const nodes = nodesOf(watched.plans.at(-1)!)
      expect(
        nodes.filter((n) => /Seq Scan|Bitmap/.test(n['Node Type']) && n['Relation Name'] !== 'kinds'),
      ).toEqual([])
      // Not one row more than the chunk needs is fetched and thrown away, but for what shares the leading columns.
      const scans = nodes.filter((node) => /Index.*Scan/.test(node['Node Type']))
      for (const scan of scans) {
        expect(scan['Rows Removed by Filter'] ?? 0).toBeLessThanOrEqual(20)
        expect(scan['Actual Rows'] * scan['Actual Loops']).toBeLessThanOrEqual(60)
      }
    }
  })

  it('up to its end reads nothing beyond it', async () => {
    for (const key of [['a', 'c'], ab('last'), ab('first')]) {
      const source = keyset({ table: key[1] === 'c' ? 'wide' : 'holes', key })
      await source.read(sql, null, 1)
      const watched = explained(sql)
      const [after, until] =
        key[1] === 'c'
          ? [
              ['100', '100990'],
              ['101', '101003'],
            ]
          : [
              ['100', '990'],
              ['101', '3'],
            ]
      expect(await source.read(watched.sql, after, 1000, until)).toMatchObject({ last: true })
      const scans = nodesOf(watched.plans.at(-1)!).filter((node) => /Scan/.test(node['Node Type']))
      for (const scan of scans) {
        if (/CTE|Subquery/.test(scan['Node Type'])) continue
        expect(scan['Node Type']).toMatch(/Index/)
        expect(scan['Rows Removed by Filter'] ?? 0).toBe(0)
        expect(scan['Actual Rows'] * scan['Actual Loops']).toBeLessThanOrEqual(20)
      }
    }
  })
})
