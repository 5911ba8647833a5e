import { InvalidConfigError } from './errors.ts'
import type { Tx } from './tx.ts'

/** Reading a table in the order of a key. Keys travel as text, so no type loses precision on the way. */
export type Keyset = { table: readonly string[]; key: readonly string[]; types: readonly string[] }

/** The SQL types of the key columns. Throws InvalidConfigError for a missing table, a missing or nullable column. */
export async function keyTypes(tx: Tx, table: string, key: readonly string[]): Promise<readonly string[]> {
  const quoted = quoteTable(table.split('.'))
  const rows = await tx<{ name: string; type: string; nullable: boolean }[]>`
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

/** The cursor column goes last, so that removing it from the row leaves the row's shape as the database gave it. */
const cursorColumn = '__holdfast_cursor'

export async function readAfter(
  tx: Tx,
  { table, key, types }: Keyset,
  after: readonly string[] | null,
  limit: number,
): Promise<{ rows: object[]; cursor: readonly string[] | null; last: boolean }> {
  const columns = key.map(quoteIdentifier)
  const list = columns.join(', ')
  const where =
    after === null
      ? ''
      : `where (${list}) > (${types.map((type, i) => `$${i + 1}::text::${type}`).join(', ')})`
  const rows = await tx.unsafe<{ [cursorColumn]?: string[] }[]>(
    `select *, array[${columns.map((c) => `${c}::text`).join(', ')}] as ${cursorColumn}
     from ${quoteTable(table)} ${where} order by ${list} limit ${Math.trunc(limit)}`,
    after === null ? [] : [...after],
  )
  const cursor = rows.at(-1)?.[cursorColumn] ?? after
  for (const row of rows) delete row[cursorColumn]
  return { rows, cursor, last: rows.length < limit }
}

function quoteTable(parts: readonly string[]): string {
  return parts.map(quoteIdentifier).join('.')
}

function quoteIdentifier(name: string): string {
  return `"${name.replaceAll('"', '""')}"`
}
