import { type Keyset, keyText, orderedText, parseKey } from './keyset.ts'
import { originOf } from './keyset-columns.ts'
import { estimate } from './keyset-count.ts'
import { all, any, divide, isAt, type KeyValues, orderOf, Parameters, type Range } from './keyset-range.ts'
import { quoteIdentifier, quoteTable } from './quote.ts'
import { SQLSTATE, sqlstateOf } from './sqlstate.ts'
import type { Sql } from './tx.ts'

type Cut = { rows: number; boundaries: KeyValues[] }

/** Up to here every key of a range is read, by the index; more where there is nothing to take a sample of. */
const readRows = 20_000
const readRowsWithoutSample = 200_000
/** Rows that lie in one block often lie together in the order too, so the blocks make a sample good, not the rows. */
const sampledBlocks = 2_000
const sampledRows = 20_000
/** of a part; with fewer, more blocks are taken */
const enoughRows = 100

/**
 * Where to cut a range into parts of about the same number of rows. A small range is read; of a large one a sample of the
 * table is taken (TABLESAMPLE SYSTEM), the one its key comes from where it is a view or a query. The database orders the
 * sample, so the boundaries ascend as the rows do; a sample that does not stand for them makes parts of unequal size, and
 * skips nothing.
 */
export async function splitBetween(sql: Sql, keyset: Keyset, range: Range, parts: number): Promise<Cut> {
  if (!Number.isSafeInteger(parts) || parts < 1) throw new RangeError(`${parts} is no number of parts`)
  const table = await sampleableTable(sql, keyset.origin)
  const limit = table ? readRows : readRowsWithoutSample
  const read = await cut(sql, keyset, range, parts, (parameters) =>
    orderedText(keyset, range, limit + 1, parameters, keyNames(keyset)),
  )
  if (read.rows <= limit) return read
  if (!table) return { rows: Math.max(limit, await estimateRows(sql, keyset, range)), boundaries: [] }
  let sample = await takeSample(sql, keyset, range, parts, table, sampledBlocks)
  // A range that is a small part of its table.
  if (sample.seen < parts * enoughRows && sampledBlocks < table.blocks)
    sample = await takeSample(sql, keyset, range, parts, table, sampledBlocks * 8)
  const rows = sample.rows * (await rowsPerRow(sql, keyset, range, table))
  return { rows: Math.max(limit, Math.round(rows)), boundaries: sample.boundaries }
}

type Table = { own: boolean; name: string; columns: string[]; blocks: number; rowsPerBlock: number }

/**
 * How many rows of a view or a query there are for each row of the table that its key comes from. The planner may be wrong
 * about both, of tables that were never analysed in the same way.
 */
async function rowsPerRow(sql: Sql, keyset: Keyset, range: Range, table: Table): Promise<number> {
  if (table.own) return 1
  const base = await estimateRows(sql, { ...keyset, from: asSource(keyset, table, '') }, range)
  return (await estimateRows(sql, keyset, range)) / Math.max(1, base)
}

/** Follows views down to the table whose blocks can be drawn from; undefined where there is none, or it may not be read. */
async function sampleableTable(sql: Sql, origin: Keyset['origin']): Promise<Table | undefined> {
  let at = origin
  for (let depth = 0; at && depth < 8; depth++) {
    const [found] = await sql<
      {
        kind: string
        schema: string
        name: string
        columns: string[]
        readable: boolean
        definition: string | null
        blocks: number
        rowsPerBlock: number
      }[]
    >`
      with recursive tree (oid) as (
        select ${String(at.relation)}::text::oid
        union select i.inhrelid from tree join pg_catalog.pg_inherits i on i.inhparent = tree.oid
      )
      select c.relkind as kind, n.nspname as schema, c.relname as name, x.columns, x.readable,
        case when c.relkind = 'v' then pg_get_viewdef(c.oid) end as definition, s.blocks, s."rowsPerBlock"
      from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
      cross join lateral (
        select array_agg(a.attname::text order by p.place) as columns,
          bool_and(has_column_privilege(c.oid, a.attnum, 'select')) as readable
        from unnest(${at.columns.map(String)}::text[]::int2[]) with ordinality as p (attnum, place)
        join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum = p.attnum
      ) x
      cross join lateral (
        select coalesce(sum(pg_relation_size(t.oid)), 0)::float8 / current_setting('block_size')::float8 as blocks,
          coalesce(sum(t.reltuples) filter (where t.reltuples > 0 and t.relpages > 0)
            / nullif(sum(t.relpages) filter (where t.reltuples > 0 and t.relpages > 0), 0), 100)::float8 as "rowsPerBlock"
        from tree join pg_catalog.pg_class t on t.oid = tree.oid where t.relkind in ('r', 'm')
      ) s
      where c.oid = ${String(at.relation)}::text::oid`
    if (!found) return undefined
    const { kind, schema, name, columns, readable, definition, blocks, rowsPerBlock } = found
    if (definition !== null) {
      at = await originInView(sql, definition, at.columns)
    } else if (['r', 'p', 'm'].includes(kind) && readable && blocks > 0)
      return { own: at.own, name: quoteTable([schema, name]), columns, blocks, rowsPerBlock }
    else return undefined
  }
  return undefined
}

async function originInView(
  sql: Sql,
  definition: string,
  numbers: readonly number[],
): Promise<Keyset['origin']> {
  try {
    const { columns } = await sql.unsafe(`select * from (${definition.replace(/;\s*$/, '')}) as v limit 0`)
    return originOf(numbers.flatMap((number) => columns[number - 1] ?? []))
  } catch (error) {
    // Who may read the view need not be allowed to read its tables.
    if (sqlstateOf(error) !== SQLSTATE.insufficientPrivilege) throw error
    return undefined
  }
}

/** `seen`: how many rows of the range the sample has; `rows`: how many that makes of the whole table */
async function takeSample(
  sql: Sql,
  keyset: Keyset,
  range: Range,
  parts: number,
  table: Table,
  blocks: number,
): Promise<{ boundaries: KeyValues[]; seen: number; rows: number }> {
  const share = Math.min(1, blocks / table.blocks)
  const kept = Math.min(1, sampledRows / (share * table.blocks * table.rowsPerBlock))
  const drawn = asSource(keyset, table, `tablesample system (${share * 100})`)
  const { rows: seen, boundaries } = await cut(sql, keyset, range, parts, (parameters) => {
    const conditions = [
      any(divide(keyset.columns, range, parameters)),
      ...keyset.notNull.map((name) => `${quoteIdentifier(name)} is not null`),
      `random() < ${kept}`,
    ]
    return `select ${keyNames(keyset)} from ${drawn} where ${all(conditions)}`
  })
  return { boundaries, seen, rows: seen / share / kept }
}

/** The table with the names of the key, in place of the view or the query. */
function asSource({ columns }: Keyset, table: Table, sample: string): string {
  const names = columns.map(
    ({ name }, i) => `${quoteIdentifier(table.columns[i] ?? name)} as ${quoteIdentifier(name)}`,
  )
  return `(select ${names.join(', ')} from ${table.name} ${sample}) as source`
}

async function estimateRows(sql: Sql, keyset: Keyset, range: Range): Promise<number> {
  const parameters = new Parameters()
  const condition = any(divide(keyset.columns, range, parameters))
  const { rows } = await estimate(sql, `select from ${keyset.from} where ${condition}`, parameters.values)
  return rows
}

/** The rows of `text`, counted and cut into parts. Rows that are equal in the order stay together. */
async function cut(
  sql: Sql,
  keyset: Keyset,
  range: Range,
  parts: number,
  text: (parameters: Parameters) => string,
): Promise<Cut> {
  const order = orderOf(keyset.columns)
  const parameters = new Parameters()
  const drawn = text(parameters)
  const isEnd = range.until ? isAt(keyset.columns, range.until, parameters) : 'false'
  const rows = await sql.unsafe<{ rows: number; cut: boolean; key: string | null }[]>(
    `with drawn as materialized (${drawn}),
      counted as (select count(*) as __holdfast_rows from drawn),
      ranked as (select *, row_number() over (order by ${order}) as __holdfast_no from drawn),
      ends as (
        select *, rank() over key_order = row_number() over key_order as __holdfast_first from ranked
        where __holdfast_no in (select __holdfast_rows * i / ${parts} from counted, generate_series(1, ${parts - 1}) i)
          and __holdfast_no < (select __holdfast_rows from counted) and (${isEnd}) is not true
        window key_order as (order by ${order}))
    select __holdfast_rows::float8 as rows, __holdfast_first is true as cut, ${keyText(keyset)} as key
    from counted left join ends on true order by __holdfast_no`,
    parameters.values,
  )
  return {
    rows: rows[0]?.rows ?? 0,
    boundaries: rows.flatMap((row) => (row.cut ? [parseKey(keyset, row.key)] : [])),
  }
}

function keyNames({ columns }: Keyset): string {
  return columns.map(({ name }) => quoteIdentifier(name)).join(', ')
}
