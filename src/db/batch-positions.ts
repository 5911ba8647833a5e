import type { Sql } from './databases.ts'
import type { Json } from './json.ts'
import type { Tx } from './tx.ts'

/** Table batch_positions: one row for each committed chunk, written by the chunk's own transaction. */
export type BatchPosition = {
  n: bigint
  cursor: Json
  /** rows of all chunks so far */
  rowsTotal: bigint
  /** the source was at its end */
  last: boolean
}

export async function readBatchPosition(
  sql: Sql,
  jobId: string,
  range: number,
): Promise<BatchPosition | undefined> {
  const [row] = await sql<{ n: string; cursor: Json; rowsTotal: string; last: boolean }[]>`
    select n, cursor, rows_total as "rowsTotal", last from holdfast.batch_positions
    where job_id = ${jobId} and range = ${range} order by n desc limit 1`
  return row && { n: BigInt(row.n), cursor: row.cursor, rowsTotal: BigInt(row.rowsTotal), last: row.last }
}

/** The insert of a chunk's position. A second chunk with this number fails with 23505. */
export function appendBatchPosition(
  tx: Tx,
  at: { jobId: string; range: number; attempt: string; rows: number } & BatchPosition,
): PromiseLike<unknown> {
  return tx`
    insert into holdfast.batch_positions (job_id, range, n, cursor, rows, rows_total, last, attempt)
    values (${at.jobId}, ${at.range}, ${String(at.n)}::bigint, ${JSON.stringify(at.cursor)}::text::jsonb, ${at.rows},
            ${String(at.rowsTotal)}::bigint, ${at.last}, ${at.attempt})`
}
