import { InvalidConfigError } from '../db/errors.ts'
import type { Json } from '../db/json.ts'
import { keyTypes, readAfter } from '../db/keyset.ts'
import type { Tx } from '../db/tx.ts'

/** Where a batch's rows come from: read in order, a chunk at a time, each chunk with the cursor after it. */
export type Source<Row> = {
  read(tx: Tx, cursor: Json, limit: number): Promise<Chunk<Row>>
}

export type Chunk<Row> = { rows: Row[]; cursor: Json; last: boolean }

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
  return {
    async read(tx, cursor, limit) {
      types ??= keyTypes(tx, table, key)
      types.catch(() => {
        types = undefined
      })
      const chunk = await readAfter(
        tx,
        { table: parts, key, types: await types },
        checkCursor(cursor, key),
        limit,
      )
      // What a row looks like is the caller's word: the type parameter of keyset.
      return chunk as Chunk<Row>
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
