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
   * How to tell whether `read` would read the same again; then a chunk is read while the one before it is processed. Without
   * it, it is not. `of` is the `read` that it knows: whoever makes a source of another one with a `read` of its own has no version
   * until it says so.
   */
  readonly version?: { readonly of: Source<Row>['read']; readonly ask: VersionOf }
  /** How many rows there are; exact: false for an estimate. */
  count?(sql: Sql): Promise<{ rows: bigint; exact: boolean }>
  /** What the source says now of the rows after `after`, up to and including `until`. */
  digest?(sql: Sql, after: Json, until: Json): Promise<{ rows: bigint; digest: bigint }>
  /** Cuts the rows after `after`, up to and including `until` (null: open), into parts of about the same number of rows. */
  split?(sql: Sql, after: Json, until: Json, parts: number): Promise<Split>
}

/** What to ask for; undefined where nothing tells. The answer is another one as soon as `read` with these arguments would read something else. */
type VersionOf = (sql: Sql, cursor: Json, limit: number, until: Json) => Promise<AskVersion | undefined>

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
