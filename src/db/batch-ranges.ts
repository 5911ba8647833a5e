import { appendBatchPosition, type BatchPosition } from './batch-positions.ts'
import type { Participant, Sql } from './databases.ts'
import { FencedError } from './errors.ts'
import type { Json } from './json.ts'
import { SQLSTATE, sqlstateOf } from './sqlstate.ts'

/** Table batch_ranges: the parts that a job's source is cut into. Together they cover it without overlap. */
export type BatchRange = {
  range: number
  /** it begins after this; null: at the beginning */
  after: Json
  /** its last key; null: it is open */
  until: Json
  position: BatchPosition
}

/**
 * The ranges of a job, each with its newest position, in one statement: who sees the number that a split took sees the
 * range as it was split.
 */
export async function readRanges(sql: Sql, jobId: string, only?: number): Promise<BatchRange[]> {
  const rows = await sql<
    {
      range: number
      after: Json
      until: Json
      n: string
      cursor: Json
      rowsTotal: string
      last: boolean
    }[]
  >`
    select r.range, r.after, r.until, coalesce(p.n, 0) as n, coalesce(p.cursor, r.after) as cursor,
      coalesce(p.rows_total, 0) as "rowsTotal", coalesce(p.last, false) as last
    from holdfast.batch_ranges r
    left join lateral (
      select n, cursor, rows_total, last from holdfast.batch_positions
      where job_id = r.job_id and range = r.range order by n desc limit 1) p on true
    where r.job_id = ${jobId} and (${only ?? null}::int is null or r.range = ${only ?? null}) order by r.range`
  return rows.map(({ range, after, until, n, cursor, rowsTotal, last }) => ({
    range,
    after,
    until,
    position: { n: BigInt(n), cursor, rowsTotal: BigInt(rowsTotal), last },
  }))
}

/**
 * Records the ranges between these boundaries, unless the job has some: two runs may have sampled different ones. A job
 * that has positions already, from a time without ranges, gets one range.
 */
export async function recordRanges(
  primary: Participant,
  jobId: string,
  boundaries: readonly Json[],
): Promise<void> {
  await primary.transaction(async (tx) => {
    await tx`select from holdfast.batch_jobs where id = ${jobId} for update`
    const [known] = await tx<{ ranges: boolean; positions: boolean }[]>`
      select exists (select from holdfast.batch_ranges where job_id = ${jobId}) as ranges,
        exists (select from holdfast.batch_positions where job_id = ${jobId}) as positions`
    if (known?.ranges === true) return
    const ends = [null, ...(known?.positions === true ? [] : boundaries), null]
    for (const [range, after] of ends.slice(0, -1).entries())
      await insertRange(tx, jobId, range, after, ends[range + 1] ?? null)
  })
}

/**
 * Cuts what is left of a range at a boundary, and takes the range's next number for that. Throws FencedError when
 * somebody else has taken it: then the range stands elsewhere. Returns the new range, behind the boundary.
 */
export async function splitRange(
  primary: Participant,
  jobId: string,
  { range, until, position }: BatchRange,
  boundary: Json,
  attempt: string,
): Promise<BatchRange> {
  const split = primary.transaction(async (tx) => {
    await tx`select from holdfast.batch_jobs where id = ${jobId} for update`
    const nothing = { rows: 0, failed: 0, digest: undefined }
    await appendBatchPosition(tx, { jobId, range, attempt, ...nothing, ...position, n: position.n + 1n })
    await tx`
      update holdfast.batch_ranges set until = ${JSON.stringify(boundary)}::text::jsonb
      where job_id = ${jobId} and range = ${range}`
    const [newest] = await tx<{ range: number }[]>`
      select max(range) as range from holdfast.batch_ranges where job_id = ${jobId}`
    const next = (newest?.range ?? 0) + 1
    await insertRange(tx, jobId, next, boundary, until)
    const start = { n: 0n, cursor: boundary, rowsTotal: 0n, last: false }
    return { range: next, after: boundary, until, position: start }
  })
  return split.catch((error: unknown) => {
    if (sqlstateOf(error) !== SQLSTATE.uniqueViolation) throw error
    throw new FencedError(`range ${range} of ${jobId} has moved meanwhile`, { cause: error })
  })
}

async function insertRange(sql: Sql, jobId: string, range: number, after: Json, until: Json): Promise<void> {
  await sql`
    insert into holdfast.batch_ranges (job_id, range, after, until)
    values (${jobId}, ${range}, ${JSON.stringify(after)}::text::jsonb, ${JSON.stringify(until)}::text::jsonb)`
}
