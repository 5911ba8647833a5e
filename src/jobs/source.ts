import type { Json } from '../db/json.ts'
import type { Sql, Tx } from '../db/tx.ts'

/** Where a batch's rows come from: read in order, a chunk at a time, each chunk with the cursor after it. */
export type Source<Row> = {
  /** the tables it reads, as `table` or `schema.table`: those whose vacuum a throttle heeds */
  readonly tables?: readonly string[]
  /** the participant that it reads from; default `primary` */
  readonly database?: string
  /**
   * At most `limit` rows after `cursor`; null is the beginning. Where `until` is given and not null, up to and including
   * it; a source without `split` is never given one.
   */
  read(tx: Tx, cursor: Json, limit: number, until?: Json): Promise<Chunk<Row>>
  /**
   * Asks for what tells one result of `read` with these arguments from another one: as long as it is the same, `read` would
   * read the same. Then a chunk is read while the one before it is processed. Undefined where nothing tells.
   */
  version?(sql: Sql, cursor: Json, limit: number, until: Json): Promise<AskVersion | undefined>
  /** How many rows there are; exact: false for an estimate. */
  count?(sql: Sql): Promise<{ rows: bigint; exact: boolean }>
  /** What the source says now of the rows after `after`, up to and including `until`. */
  digest?(sql: Sql, after: Json, until: Json): Promise<{ rows: bigint; digest: bigint }>
  /** Cuts the rows after `after`, up to and including `until` (null: open), into parts of about the same number of rows. */
  split?(sql: Sql, after: Json, until: Json, parts: number): Promise<Split>
}

/** Sent at once, so that what is sent after it cannot change the answer. */
export type AskVersion = (tx: Tx) => PromiseLike<string>

export type Split = {
  /** estimated */
  rows: number
  /** at most `parts - 1` cursors, ascending, strictly inside; fewer or none where there are too few rows */
  boundaries: Json[]
}

export type Chunk<Row> = {
  rows: Row[]
  /** what names each row in the source, in the order of `rows` */
  keys: readonly Json[]
  /** the sum modulo 2^64, signed, of a hash of each key; absent where the source has no `digest` to compare it with */
  digest?: bigint
  /** where to go on */
  cursor: Json
  /** there is nothing after these rows, up to `until` where it was given */
  last: boolean
  /** Why the one record that this chunk is cannot be read; it has a key and no row. Others come after it. */
  unreadable?: Error
}
