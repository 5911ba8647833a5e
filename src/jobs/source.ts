import type { Json } from '../db/json.ts'
import type { Sql, Tx } from '../db/tx.ts'

/** Where a batch's rows come from: read in order, a chunk at a time, each chunk with the cursor after it. */
export type Source<Row> = {
  /** the tables it reads, as `table` or `schema.table`: those whose vacuum a throttle heeds */
  readonly tables?: readonly string[]
  /** the participant that it reads from; default primary */
  readonly database?: string
  /** At most `limit` rows after `cursor` (null: from the beginning), up to and including `until` (null: to the end). */
  read(tx: Tx, cursor: Json, limit: number, until?: Json): Promise<Chunk<Row>>
  /**
   * Where to cut what lies after `after` up to and including `until` into so many parts of about the same size: at most
   * parts - 1 cursors, ascending, fewer where there are too few rows. `rows`: about how many there are.
   */
  split?(sql: Sql, after: Json, until: Json, parts: number): Promise<{ rows: number; boundaries: Json[] }>
  /** How many rows there are; exact: false for an estimate. */
  count?(sql: Sql): Promise<{ rows: bigint; exact: boolean }>
  /** What the source says now of the rows after `after`, up to and including `until`. */
  digest?(sql: Sql, after: Json, until: Json): Promise<{ rows: bigint; digest: bigint }>
}

export type Chunk<Row> = {
  rows: Row[]
  /** what names each row in the source, in the order of `rows` */
  keys: readonly Json[]
  /** the sum modulo 2^64, signed, of a hash of each key; absent where the source has no `digest` to compare it with */
  digest?: bigint
  /** where to go on */
  cursor: Json
  /** there is nothing after these rows */
  last: boolean
}
