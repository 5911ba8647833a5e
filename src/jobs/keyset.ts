import { InvalidConfigError } from '../db/errors.ts'
import type { Json } from '../db/json.ts'
import { digestBetween, type Keyset, readBetween, versionText } from '../db/keyset.ts'
import { describeQuery, describeTable, type KeyEntry } from '../db/keyset-columns.ts'
import { countRows } from '../db/keyset-count.ts'
import type { KeyValues } from '../db/keyset-range.ts'
import { splitBetween } from '../db/keyset-split.ts'
import type { Sql } from '../db/tx.ts'
import type { Source } from './source.ts'

/** A column by its name; with `nulls` one that may be null, and where null then goes in the order. */
export type KeysetColumn = string | { column: string; nulls: 'last' | 'first' }

export type KeysetOptions = {
  /**
   * Columns that together tell every row apart, in the order of reading; any type that the database orders. An index of
   * them, in this order and with null where they have it, keeps each read cheap. Of a table a unique index has to prove
   * that no two rows have the same key; of a view or a query each chunk is compared while it is read.
   */
  key: readonly KeysetColumn[]
  /** the participant to read from; default `primary` */
  database?: string
  /** those whose vacuum a throttle heeds, as `table` or `schema.table`; default: `table` */
  tables?: readonly string[]
} & (
  | {
      /** `table` or `schema.table`, in exact case; a view will do */
      table: string
      query?: never
    }
  | {
      /** a SELECT without parameters, which is read as a subquery; an ORDER BY of its own has no effect */
      query: string
      table?: never
    }
)

/**
 * Reads a table, a view or a query in the order of a key, each chunk after the last key of the one before. Reading throws
 * InvalidConfigError where the key does not fit, before the first row, and SourceKeyError where two rows of a view or a
 * query have the same key or one has null in it.
 */
export function keyset<Row extends object = Record<string, unknown>>(options: KeysetOptions): Source<Row> {
  const { table, query, database } = options
  const key = checkOptions(options)
  let described: Promise<Keyset> | undefined
  const describe = async (sql: Sql): Promise<Keyset> => {
    described =
      query === undefined
        ? describeTable(sql, table, database ?? 'primary', key)
        : describeQuery(sql, query, key)
    described.catch(() => {
      described = undefined
    })
    return described
  }
  const tables = options.tables ?? (table === undefined ? undefined : [table])
  const read: Source<Row>['read'] = async (tx, cursor, limit, until = null) => {
    // Anew where reading begins: an index may be gone since, a column be another.
    const known = cursor === null ? undefined : described
    const range = rangeOf(cursor, until)
    const chunk = await readBetween(tx, await (known ?? describe(tx)), range, limit)
    // What a row looks like is the caller's word: the type parameter of keyset.
    return chunk as Omit<typeof chunk, 'rows'> & { rows: Row[] }
  }
  const rangeOf = (cursor: Json, until: Json) => ({
    after: checkCursor(cursor, key),
    until: checkCursor(until, key),
  })
  return {
    ...(tables && { tables }),
    ...(database !== undefined && { database }),
    read,
    version: {
      of: read,
      async ask(sql, cursor, limit, until) {
        const range = rangeOf(cursor, until)
        const text = versionText(await (described ?? describe(sql)), range, limit)
        if (text === undefined) return undefined
        return (tx) => tx.unsafe<{ version: string }[]>(text).then(([row]) => row?.version ?? '')
      },
    },
    async count(sql) {
      return countRows(sql, await describe(sql))
    },
    async digest(sql, after, until) {
      const end = checkCursor(until, key)
      if (end === null) return { rows: 0n, digest: 0n }
      return digestBetween(sql, await (described ?? describe(sql)), {
        after: checkCursor(after, key),
        until: end,
      })
    },
    async split(sql, after, until, parts) {
      const range = rangeOf(after, until)
      return splitBetween(sql, await describe(sql), range, parts)
    },
  }
}

function checkOptions({ table, query, key, database, tables = [] }: KeysetOptions): KeyEntry[] {
  const label = `keyset(${table ?? 'query'})`
  const problems: string[] = []
  if ((table === undefined) === (query === undefined))
    problems.push('keyset: give it either a table or a query')
  for (const name of [...(table === undefined ? [] : [table]), ...tables]) {
    const parts = typeof name === 'string' ? name.split('.') : []
    if (parts.length < 1 || parts.length > 2 || parts.includes(''))
      problems.push(`keyset: ${JSON.stringify(name)} is not a table or schema.table`)
  }
  if (query !== undefined && (typeof query !== 'string' || query.trim() === ''))
    problems.push(`${label}: the query is the text of a SELECT`)
  if (database === '') problems.push(`${label}: database is the name of a participant`)
  if (key.length === 0) problems.push(`${label}: name at least one key column`)
  const entries = key.map((entry): KeyEntry => {
    const { column: name, nulls } = typeof entry === 'string' ? { column: entry, nulls: undefined } : entry
    if (typeof name !== 'string' || name === '') problems.push(`${label}: a key column has no name`)
    if (typeof entry !== 'string' && nulls !== 'last' && nulls !== 'first')
      problems.push(`${label}: nulls of ${name} is 'last' or 'first', not ${JSON.stringify(nulls)}`)
    return { name, nulls }
  })
  if (new Set(entries.map(({ name }) => name)).size < entries.length)
    problems.push(`${label}: a column stands in the key twice`)
  if (problems.length > 0) throw new InvalidConfigError(problems)
  return entries
}

function checkCursor(cursor: Json, key: readonly KeyEntry[]): KeyValues | null {
  if (cursor === null) return null
  const fits = (value: Json, i: number) =>
    typeof value === 'string' || (value === null && key[i]?.nulls !== undefined)
  if (!Array.isArray(cursor) || cursor.length !== key.length || !cursor.every(fits)) {
    throw new InvalidConfigError([
      `the stored cursor ${JSON.stringify(cursor)} does not fit the key (${key.map(({ name }) => name).join(', ')}): the batch's key was changed while a job of it was under way`,
    ])
  }
  return cursor
}
