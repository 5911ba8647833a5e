import { InvalidConfigError } from './errors.ts'
import type { Sql, Tx } from './tx.ts'

/** Reading a table in the order of a key. Keys travel as text, so no type loses precision on the way. */
export type Keyset = { table: readonly string[]; key: readonly string[]; types: readonly string[] }

/** The SQL types of the key columns. Throws InvalidConfigError for a missing table, a missing or nullable column. */
export async function keyTypes(sql: Sql, table: string, key: readonly string[]): Promise<readonly string[]> {
  const quoted = quoteTable(table.split('.'))
  const rows = await sql<{ name: string; type: string; nullable: boolean }[]>`
    select attname as name, format_type(atttypid, atttypmod) as type, not attnotnull as nullable
    from pg_catalog.pg_attribute where attrelid = to_regclass(${quoted}) and attnum > 0 and not attisdropped`
  if (rows.length === 0)
    throw new InvalidConfigError([`keyset: there is no table ${table} on the primary database`])
  return key.map((column) => {
    const row = rows.find((r) => r.name === column)
    if (!row) throw new InvalidConfigError([`keyset: table ${table} has no column ${column}`])
    if (row.nullable) {
      throw new InvalidConfigError([
        `keyset: column ${table}.${column} may be null, and null has no place in the order`,
      ])
    }
    return row.type
  })
}

/** These go last, so that removing them from the row leaves the row's shape as the database gave it. */
const keyColumn = '__holdfast_key'
const hashColumn = '__holdfast_hash'

/** After `after` (null: from the beginning), up to and including `until` (null: open). */
export type Range = { after: readonly string[] | null; until: readonly string[] | null }

export async function readBetween(
  tx: Tx,
  keyset: Keyset,
  { after, until }: Range,
  limit: number,
): Promise<{
  rows: object[]
  keys: readonly string[][]
  digest: bigint
  cursor: readonly string[] | null
  last: boolean
}> {
  const { table, key } = keyset
  const list = key.map(quoteIdentifier).join(', ')
  const conditions = [
    ...(after === null ? [] : [beyond(keyset, '>', 1)]),
    ...(until === null ? [] : [beyond(keyset, '<=', 1 + (after?.length ?? 0))]),
  ]
  const rows = await tx.unsafe<{ [keyColumn]?: string; [hashColumn]?: string }[]>(
    `select *, ${keyText(key)} as ${keyColumn}, ${keyHash(key)} as ${hashColumn}
     from ${quoteTable(table)} ${conditions.length === 0 ? '' : `where ${conditions.join(' and ')}`}
     order by ${list} limit ${Math.trunc(limit)}`,
    [...(after ?? []), ...(until ?? [])],
  )
  const texts: string[] = []
  let digest = 0n
  for (const row of rows) {
    digest += BigInt(row[hashColumn] ?? 0)
    texts.push(row[keyColumn] ?? '')
    // The last first: a property that was not added last takes the object's shape away, and all its speed.
    delete row[hashColumn]
    delete row[keyColumn]
  }
  const parse = (text: string) => (key.length === 1 ? [text] : (JSON.parse(text) as string[]))
  const last = texts.at(-1)
  return {
    rows,
    // Hardly anybody asks for them.
    get keys() {
      return texts.map(parse)
    },
    digest: BigInt.asIntN(64, digest),
    cursor: last === undefined ? after : parse(last),
    last: rows.length < limit,
  }
}

/** What stands now after `after` (null: from the beginning), up to and including `until`. */
export async function digestBetween(
  sql: Sql,
  keyset: Keyset,
  after: readonly string[] | null,
  until: readonly string[],
): Promise<{ rows: bigint; digest: bigint }> {
  const { table, key } = keyset
  const from = after === null ? '' : `and ${beyond(keyset, '>', 1 + until.length)}`
  const [row] = await sql.unsafe<{ rows: string; digest: string }[]>(
    `select count(*) as rows, coalesce(sum(${keyHash(key)}), 0) as digest
     from ${quoteTable(table)} where ${beyond(keyset, '<=', 1)} ${from}`,
    [...until, ...(after ?? [])],
  )
  return { rows: BigInt(row?.rows ?? 0), digest: BigInt.asIntN(64, BigInt(row?.digest ?? 0)) }
}

/** Counted up to here; beyond, what the statistics say will do. */
const countedRows = 200_000

export async function countRows(
  sql: Sql,
  table: readonly string[],
): Promise<{ rows: bigint; exact: boolean }> {
  const quoted = quoteTable(table)
  const [statistics] = await sql<{ rows: number }[]>`
    select reltuples::float8 as rows from pg_catalog.pg_class where oid = to_regclass(${quoted})`
  // -1: never analysed. A partitioned table or a view has none of its own.
  const estimate = statistics?.rows ?? -1
  if (estimate > countedRows) return { rows: BigInt(Math.round(estimate)), exact: false }
  const [counted] = await sql.unsafe<{ rows: string }[]>(`select count(*) as rows from ${quoted}`)
  return { rows: BigInt(counted?.rows ?? 0), exact: true }
}

function beyond({ key, types }: Keyset, operator: '>' | '<=', firstParameter: number): string {
  const values = types.map((type, i) => `$${firstParameter + i}::text::${type}`)
  return `(${key.map(quoteIdentifier).join(', ')}) ${operator} (${values.join(', ')})`
}

/** The key as text: no value loses precision, and the driver has nothing to parse. Several columns: an array in JSON. */
function keyText(key: readonly string[]): string {
  const texts = key.map((column) => `${quoteIdentifier(column)}::text`)
  return texts.length === 1 ? texts.join('') : `array_to_json(array[${texts.join(', ')}])::text`
}

function keyHash(key: readonly string[]): string {
  return `hashtextextended(${keyText(key)}, 0)`
}

/** `parts`: table, or schema and table, in exact case */
export function quoteTable(parts: readonly string[]): string {
  return parts.map(quoteIdentifier).join('.')
}

function quoteIdentifier(name: string): string {
  return `"${name.replaceAll('"', '""')}"`
}
