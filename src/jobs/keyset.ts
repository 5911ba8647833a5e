import { InvalidConfigError } from '../db/errors.ts'
import type { Json } from '../db/json.ts'
import { countRows, digestBetween, type Keyset, keyTypes, readBetween } from '../db/keyset.ts'
import type { Sql } from '../db/tx.ts'
import type { Source } from './source.ts'

export type KeysetOptions = {
  /** `table` or `schema.table` on the primary database */
  table: string
  /** unique together, not null, and ordered by the database; an index led by them keeps each read cheap */
  key: readonly string[]
}

/** Reads a table in the order of a key, each chunk after the last key of the one before. */
export function keyset<Row extends object = Record<string, unknown>>(options: KeysetOptions): Source<Row> {
  const { table, key } = options
  if (key.length === 0) throw new InvalidConfigError([`keyset(${table}): name at least one key column`])
  const parts = table.split('.')
  if (parts.length > 2 || parts.some((part) => part === '')) {
    throw new InvalidConfigError([`keyset: ${JSON.stringify(table)} is not a table or schema.table`])
  }
  let types: Promise<readonly string[]> | undefined
  const resolve = async (sql: Sql): Promise<Keyset> => {
    types ??= keyTypes(sql, table, key)
    types.catch(() => {
      types = undefined
    })
    return { table: parts, key, types: await types }
  }
  return {
    tables: [table],
    async read(tx, cursor, limit, until = null) {
      const range = { after: checkCursor(cursor, key), until: checkCursor(until, key) }
      const chunk = await readBetween(tx, await resolve(tx), range, limit)
      // What a row looks like is the caller's word: the type parameter of keyset.
      return chunk as Omit<typeof chunk, 'rows'> & { rows: Row[] }
    },
    async count(sql) {
      await resolve(sql)
      return countRows(sql, parts)
    },
    async digest(sql, after, until) {
      const end = checkCursor(until, key)
      if (end === null) return { rows: 0n, digest: 0n }
      return digestBetween(sql, await resolve(sql), checkCursor(after, key), end)
    },
  }
}

function checkCursor(cursor: Json, key: readonly string[]): string[] | null {
  if (cursor === null) return null
  if (!Array.isArray(cursor) || cursor.length !== key.length || !cursor.every((v) => typeof v === 'string')) {
    throw new InvalidConfigError([
      `the stored cursor ${JSON.stringify(cursor)} does not fit the key (${key.join(', ')}): the batch's key was changed while a job of it was under way`,
    ])
  }
  return cursor
}
