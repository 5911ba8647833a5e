import { SourceKeyError } from './errors.ts'
import {
  divide,
  type KeyColumn,
  type KeyValues,
  Literals,
  orderOf,
  Parameters,
  type Range,
} from './keyset-range.ts'
import { quoteIdentifier } from './quote.ts'
import type { Sql, Tx } from './tx.ts'

/** What is read in the order of a key. */
export type Keyset = {
  /** for messages */
  label: string
  /** a quoted table, or a query in parentheses with its alias */
  from: string
  columns: readonly KeyColumn[]
  /** no two rows have the same key, and none of its columns is null that must not be; otherwise each read looks */
  proven: boolean
  /** columns whose null is an error */
  notNull: readonly string[]
  /** one column that is never null: its text is the key's, without JSON around it */
  plain: boolean
  /** the relation and its columns that the key comes from as they are, known by number; `own`: it is what is read */
  origin: { relation: number; columns: readonly number[]; own: boolean; partitioned: boolean } | undefined
}

/** These go last, so that removing them from the row leaves the row's shape as the database gave it. */
const keyColumn = '__holdfast_key'
const hashColumn = '__holdfast_hash'
const flawColumn = '__holdfast_flaw'

type Read = { [keyColumn]?: string | null; [hashColumn]?: string; [flawColumn]?: 'null' | 'duplicate' | null }

/** At most `limit` rows of a range. Throws SourceKeyError where a row's key is no key; no row is returned then. */
export async function readBetween(
  tx: Tx,
  keyset: Keyset,
  range: Range,
  limit: number,
): Promise<{
  rows: object[]
  keys: readonly KeyValues[]
  digest: bigint
  cursor: KeyValues | null
  last: boolean
}> {
  const parameters = new Parameters()
  const text = readText(keyset, range, limit, parameters)
  const rows = await tx.unsafe<Read[]>(text, parameters.values)
  const texts: (string | null)[] = []
  let digest = 0n
  const last = rows.length <= limit
  for (const [i, row] of rows.entries()) {
    const flaw = row[flawColumn]
    if (flaw) throw flawed(keyset, flaw)
    if (i === limit) break
    digest += BigInt(row[hashColumn] ?? 0)
    texts.push(row[keyColumn] ?? null)
    // The last first: a property that was not added last takes the object's shape away, and all its speed.
    if (!keyset.proven) delete row[flawColumn]
    delete row[hashColumn]
    delete row[keyColumn]
  }
  if (!last) rows.pop()
  const parse = (key: string | null) => parseKey(keyset, key)
  return {
    rows,
    // Hardly anybody asks for them.
    get keys() {
      return texts.map(parse)
    },
    digest: BigInt.asIntN(64, digest),
    cursor: texts.length === 0 ? range.after : parse(texts.at(-1) ?? null),
    last,
  }
}

/** One row more than asked for tells whether there is one, and whether it has the key of the last. */
function readText(keyset: Keyset, range: Range, limit: number, parameters: Parameters): string {
  const { columns, notNull, proven } = keyset
  const key = `${keyText(keyset)} as ${keyColumn}, ${keyHash(keyset)} as ${hashColumn}`
  if (proven) return orderedText(keyset, range, limit + 1, parameters, `*, ${key}`)
  const isNull = notNull.map((name) => `${quoteIdentifier(name)} is null`).join(' or ') || 'false'
  // Equal in the order, which is not equal as text.
  const isDuplicate = 'rank() over key_order <> row_number() over key_order'
  return `
    select *, ${key}, case when ${isNull} then 'null' when ${isDuplicate} then 'duplicate' end as ${flawColumn}
    from (${orderedText(keyset, range, limit + 1, parameters)}) as source
    window key_order as (order by ${orderOf(columns)}) order by ${orderOf(columns)}`
}

/** The first `limit` rows of a range, in their order. */
export function orderedText(
  keyset: Keyset,
  range: Range,
  limit: number,
  parameters: Parameters,
  select = '*',
): string {
  const order = orderOf(keyset.columns)
  const [first = 'false', ...others] = divide(keyset.columns, range, parameters)
  const read = (condition: string, what: string) =>
    `select ${what} from ${keyset.from} where ${condition} order by ${order} limit ${Math.trunc(limit)}`
  if (others.length === 0) return read(first, select)
  // Each part reads what those before it left to be read, mostly nothing. A limit that is not a constant tells the planner
  // nothing, hence the other one inside.
  const parts = [`part_0 as materialized (${read(first, '*')})`]
  for (const [i, condition] of others.entries()) {
    const taken = parts.map((_part, n) => `(select count(*) from part_${n})`).join(' - ')
    parts.push(
      `part_${i + 1} as materialized (
        select * from (${read(condition, '*')}) as part limit ${Math.trunc(limit)} - ${taken})`,
    )
  }
  const union = parts.map((_part, n) => `select * from part_${n}`).join(' union all ')
  return `with ${parts.join(',\n')} select ${select} from (${union}) as parts order by ${order}`
}

/**
 * A query of one value, `version`, that is another as soon as readBetween with the same arguments would read other rows, other
 * versions of them, or other columns. A row version is known by where it is and by the transaction that made it. Where it is
 * changes its meaning when the table is written anew (VACUUM FULL), and what is read of it changes with a column that is added
 * without that; so which file it is in and the versions of the columns belong to it. Undefined where the database keeps no
 * versions, or reads in several parts.
 */
export function versionText(keyset: Keyset, range: Range, limit: number): string | undefined {
  const { proven, columns, origin } = keyset
  if (!proven || !origin || columns.some(({ nulls }) => nulls !== undefined)) return undefined
  const relation = Math.trunc(origin.relation)
  const hash = (part: string) => `hash_array_extended(array_agg(${part}), 0)`
  const file = origin.partitioned
    ? `${hash('tableoid')}, ${hash('pg_relation_filenode(tableoid)')}`
    : `pg_relation_filenode(${relation})`
  return `
    select concat_ws(':', count(*), ${hash('ctid')}, ${hash('xmin')}, ${file},
      (select hash_array_extended(array_agg(xmin order by attnum), 0) from pg_catalog.pg_attribute
       where attrelid = ${relation} and attnum > 0)) as version
    from (${orderedText(keyset, range, limit + 1, new Literals(), 'tableoid, ctid, xmin')}) as source`
}

/** How many rows stand in a range now, and the sum of the hashes of their keys. */
export async function digestBetween(
  sql: Sql,
  keyset: Keyset,
  range: Range,
): Promise<{ rows: bigint; digest: bigint }> {
  const parameters = new Parameters()
  const parts = divide(keyset.columns, range, parameters).map(
    (condition) => `select ${keyHash(keyset)} as hash from ${keyset.from} where ${condition}`,
  )
  const [row] = await sql.unsafe<{ rows: string; digest: string }[]>(
    `select count(*) as rows, coalesce(sum(hash), 0) as digest from (${parts.join(' union all ')}) as parts`,
    parameters.values,
  )
  return { rows: BigInt(row?.rows ?? 0), digest: BigInt.asIntN(64, BigInt(row?.digest ?? 0)) }
}

/** The key as text: no value loses precision, and the driver has nothing to parse. */
export function keyText({ columns, plain }: Keyset): string {
  const texts = columns.map(({ name }) => `${quoteIdentifier(name)}::text`).join(', ')
  return plain ? texts : `array_to_json(array[${texts}])::text`
}

export function parseKey({ plain }: Keyset, text: string | null): KeyValues {
  return plain ? [text] : (JSON.parse(text ?? '[]') as KeyValues)
}

function keyHash(keyset: Keyset): string {
  return `hashtextextended(${keyText(keyset)}, 0)`
}

function flawed({ label, columns, notNull }: Keyset, flaw: 'null' | 'duplicate'): SourceKeyError {
  const key = columns.map(({ name }) => name).join(', ')
  return new SourceKeyError(
    flaw === 'null'
      ? `${label}: a row has null in its key (${notNull.join(', ')}); leave such rows out, or say where null goes: { column: '${notNull[0]}', nulls: 'last' } in place of '${notNull[0]}'`
      : `${label}: several rows have the same key (${key}), so some would be skipped; add columns to the key until it tells every row apart`,
  )
}
