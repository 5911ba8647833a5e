import type { Sql } from './databases.ts'
import type { Json } from './json.ts'
import type { Tx } from './tx.ts'

/**
 * Table batch_positions: one row for each committed chunk, written by the chunk's own transaction, and one without rows for
 * each time that a range was split.
 */
export type BatchPosition = {
  n: bigint
  cursor: Json
  /** rows of all chunks so far, those included that were set aside */
  rowsTotal: bigint
  /** the source was at its end */
  last: boolean
}

/** What a chunk says of itself. */
export type ChunkRecord = {
  jobId: string
  range: number
  attempt: string
  rows: number
  failed: number
  /** see Chunk */
  digest: bigint | undefined
}

/** The insert of a chunk's position. A second chunk with this number fails with 23505. */
export function appendBatchPosition(tx: Tx, at: ChunkRecord & BatchPosition): PromiseLike<unknown> {
  return tx`
    insert into holdfast.batch_positions (job_id, range, n, cursor, rows, failed, rows_total, last, digest, attempt)
    values (${at.jobId}, ${at.range}, ${String(at.n)}::bigint, ${JSON.stringify(at.cursor)}::text::jsonb, ${at.rows},
            ${at.failed}, ${String(at.rowsTotal)}::bigint, ${at.last},
            ${at.digest === undefined ? null : String(at.digest)}::bigint, ${at.attempt})`
}

export type RecordedChunk = {
  n: bigint
  cursor: Json
  rows: bigint
  failed: bigint
  last: boolean
  digest: bigint | null
}

/** Chunks of a range in their order, from number `from` on. */
export async function listChunks(
  sql: Sql,
  jobId: string,
  range: number,
  from: bigint,
  limit: number,
): Promise<RecordedChunk[]> {
  const rows = await sql<
    { n: string; cursor: Json; rows: string; failed: string; last: boolean; digest: string | null }[]
  >`
    select n, cursor, rows, failed, last, digest from holdfast.batch_positions
    where job_id = ${jobId} and range = ${range} and n >= ${String(from)}::bigint order by n limit ${limit}`
  return rows.map((row) => ({
    ...row,
    n: BigInt(row.n),
    rows: BigInt(row.rows),
    failed: BigInt(row.failed),
    digest: row.digest === null ? null : BigInt(row.digest),
  }))
}

export type BatchProgress = {
  /** processed */
  rows: bigint
  /** set aside in batch_failures */
  failed: bigint
  chunks: bigint
  /** rows per second over the last minute of work; null before there are two chunks */
  rowsPerSecond: number | null
  lastChunkAt: Date | null
  ranges: RangeProgress[]
}

export type RangeProgress = { range: number; rows: bigint; failed: bigint; chunks: bigint; last: boolean }

/** How far a job is, and how fast it was in the minute before its newest chunk. */
export async function readBatchProgress(sql: Sql, jobId: string): Promise<BatchProgress> {
  const [row] = await sql<
    {
      rows: string
      failed: string
      chunks: string
      recent: string | null
      seconds: number | null
      lastChunkAt: Date | null
    }[]
  >`
    with chunks as (select rows, failed, last, at from holdfast.batch_positions where job_id = ${jobId}),
      newest as (select max(at) as at from chunks),
      recent as (
        select c.rows, c.at from chunks c, newest n where c.at > n.at - interval '1 minute')
    select coalesce(sum(rows - failed), 0) as rows, coalesce(sum(failed), 0) as failed,
      -- Not those that only split a range.
      count(*) filter (where rows > 0 or last) as chunks,
      -- The oldest of the window is where its time begins; its rows came before.
      (select sum(rows) from recent where at > (select min(at) from recent)) as recent,
      (select extract(epoch from max(at) - min(at))::float8 from recent) as seconds,
      max(at) as "lastChunkAt"
    from chunks`
  if (!row) throw new Error('an aggregate without a row')
  const { recent, seconds } = row
  return {
    rows: BigInt(row.rows),
    failed: BigInt(row.failed),
    chunks: BigInt(row.chunks),
    rowsPerSecond: recent === null || seconds === null || seconds === 0 ? null : Number(recent) / seconds,
    lastChunkAt: row.lastChunkAt,
    ranges: await readRangeProgress(sql, jobId),
  }
}

async function readRangeProgress(sql: Sql, jobId: string): Promise<RangeProgress[]> {
  const rows = await sql<{ range: number; rows: string; failed: string; chunks: string; last: boolean }[]>`
    select r.range, coalesce(sum(p.rows - p.failed), 0) as rows, coalesce(sum(p.failed), 0) as failed,
      count(p.n) filter (where p.rows > 0 or p.last) as chunks, coalesce(bool_or(p.last), false) as last
    from holdfast.batch_ranges r
    left join holdfast.batch_positions p on p.job_id = r.job_id and p.range = r.range
    where r.job_id = ${jobId} group by r.range order by r.range`
  return rows.map(({ range, rows: done, failed, chunks, last }) => ({
    range,
    rows: BigInt(done),
    failed: BigInt(failed),
    chunks: BigInt(chunks),
    last,
  }))
}
