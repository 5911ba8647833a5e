import type { BatchFailure } from '../db/batch-failures.ts'
import type { BatchJob } from '../db/batch-jobs.ts'
import type { BatchProgress } from '../db/batch-positions.ts'
import type { BatchRunRecord } from '../db/batch-runs.ts'
import type { DryRun } from '../jobs/dry-run-batch.ts'
import type { Verification } from '../jobs/verify-batch.ts'
import { age, section } from './table.ts'

/** A job and how far it is, with counts as JSON has them. */
export type JobView = Omit<BatchJob, 'rowsExpected'> & { rowsExpected: number | null } & Omit<
    BatchProgress,
    'rows' | 'failed' | 'chunks' | 'ranges'
  > & { rows: number; failed: number; chunks: number; ranges: RangeView[] }

type RangeView = { range: number; rows: number; failed: number; chunks: number; last: boolean }

/** How `holdfast batch` shows things to humans. */
export function describeJobs(jobs: readonly JobView[], now: number): string {
  if (jobs.length === 0) return 'no batch job\n'
  return section(
    'batch jobs',
    ['job', 'state', 'rows', 'of', 'failed', 'pace', 'begun'],
    jobs.map((job) => [
      job.id,
      job.status,
      count(job.rows),
      expected(job),
      count(job.failed),
      left(job),
      `${age((now - (job.startedAt ?? job.createdAt).getTime()) / 1_000)} ago`,
    ]),
  )
}

type Failure = Omit<BatchFailure, 'id'> & { id: string }

export function describeJob(
  job: JobView,
  failures: readonly Failure[],
  runs: readonly BatchRunRecord[],
  now: number,
): string {
  const parts = [
    describeJobs([job], now),
    `chunks: ${count(job.chunks)}; parameters: ${JSON.stringify(job.params)}\n`,
    job.schedule === null || job.scheduledFor === null
      ? ''
      : `made by the schedule ${job.schedule} for ${job.scheduledFor.toISOString()}\n`,
    job.error === null ? '' : `error: ${job.error}\n`,
    job.hold === null ? '' : `holds: ${job.hold}\n`,
    section(
      'ranges',
      ['range', 'chunks', 'rows', 'failed', ''],
      (job.ranges.length > 1 ? job.ranges : []).map((r) => [
        String(r.range),
        count(r.chunks),
        count(r.rows),
        count(r.failed),
        r.last ? 'at its end' : '',
      ]),
    ),
    section(
      'runs',
      ['worker', 'begun', 'took', 'chunks', 'rows', 'outcome'],
      runs.map((run) => [
        run.worker,
        `${age((now - run.startedAt.getTime()) / 1_000)} ago`,
        run.endedAt === null ? '-' : age((run.endedAt.getTime() - run.startedAt.getTime()) / 1_000),
        run.chunks === null ? '-' : count(run.chunks),
        run.rows === null ? '-' : count(run.rows),
        run.outcome ?? 'runs, or its worker died',
      ]),
    ),
    section(
      'rows that failed',
      ['row', 'state', 'tries', 'SQLSTATE', 'stack', 'error'],
      failures.map((f) => [
        JSON.stringify(f.rowKey),
        f.state,
        String(f.tries),
        f.sqlstate ?? '-',
        f.stackDigest,
        f.error.replaceAll(/\s+/g, ' ').slice(0, 120),
      ]),
    ),
    advice(job),
  ]
  return parts.filter((part) => part !== '').join('\n')
}

function advice({ id, status, failed }: JobView): string {
  if (status === 'failed') return `mend what the error names, then: holdfast batch resume ${id}\n`
  if (status === 'paused') return `holdfast batch resume ${id} goes on\n`
  if (status === 'pausing' || status === 'cancelling')
    return `it lets go after the chunk that is under way; if its worker hangs: holdfast batch ${status === 'pausing' ? 'pause' : 'cancel'} ${id} --force\n`
  if (status === 'completed' && failed > 0)
    return `mend the rows or the code, then: holdfast batch retry-failures ${id}\n`
  if (status === 'completed') return `holdfast batch verify ${id} proves it\n`
  return ''
}

export function describeDryRun(run: DryRun): string {
  const chunks = section(
    'dry run: each chunk was rolled back, and no job is recorded',
    ['chunk', 'rows', 'work', 'prepare'],
    run.chunks.map((c) => [
      String(c.chunk),
      count(c.rows),
      `${c.workMs.toFixed(1)} ms`,
      `${c.prepareMs.toFixed(1)} ms`,
    ]),
  )
  const end = run.last ? 'that is all of the source\n' : ''
  return `${chunks}${end}${run.error === null ? '' : `failed: ${run.error}\n`}`
}

export function describeVerification(v: Verification): string {
  const lines = [
    `${v.jobId} is ${v.status}: ${count(v.chunks)} chunks${v.ranges === 1 ? '' : ` in ${v.ranges} ranges`}, ${count(v.rows.processed)} rows processed, ${count(v.rows.failed)} failed`,
    `the source has ${count(v.source.rows)} rows in their intervals now${v.beyond === undefined ? '' : `, and ${count(v.beyond)} outside them`}`,
    v.missing.length === 0
      ? 'no chunk is missing'
      : `MISSING: ${v.missing.map(({ range, chunk }) => `chunk ${chunk} of range ${range}`).join(', ')}`,
    ...(v.covered ? [] : ['the ranges do NOT cover the source']),
    v.changedChunks === 0
      ? 'the keys of each chunk are those that are in the source now'
      : `${count(v.changedChunks)} chunks differ: rows were inserted, deleted or re-keyed after they were read`,
  ]
  const changed = section(
    '',
    ['range', 'chunk', 'after', 'until', 'read', 'now'],
    v.changed.map((c) => [
      String(c.range),
      String(c.chunk),
      JSON.stringify(c.after),
      JSON.stringify(c.until),
      count(c.read),
      count(c.now),
    ]),
  )
  const verdict = v.proved
    ? 'proved: each row of the source was processed exactly once'
    : 'not proved: see above'
  return `${lines.join('\n')}\n${changed}${verdict}\n`
}

/** Rate, and the time that the rest takes at that rate. */
export function left({
  status,
  hold,
  rowsPerSecond,
  rowsExpected,
  rowsExact,
  rows,
  failed,
}: JobView): string {
  if (hold !== null && status === 'running') return `holds: ${hold}`
  if (rowsPerSecond === null) return '-'
  const rate = `${count(Math.round(rowsPerSecond))}/s`
  if (status !== 'running' || rowsExpected === null || rowsPerSecond <= 0) return rate
  const rest = Math.max(0, rowsExpected - rows - failed)
  return `${rate}, ${rowsExact === false ? 'about ' : ''}${age(rest / rowsPerSecond)} to go`
}

function expected({ rowsExpected, rowsExact }: JobView): string {
  if (rowsExpected === null) return '-'
  return `${rowsExact === false ? 'about ' : ''}${count(rowsExpected)}`
}

function count(n: number | bigint): string {
  return n.toLocaleString('en-US')
}
