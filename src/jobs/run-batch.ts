import { countFailures } from '../db/batch-failures.ts'
import {
  type BatchStatus,
  findBatchJob,
  moveBatchJob,
  readBatchStatus,
  recordExpected,
} from '../db/batch-jobs.ts'
import { type BatchRange, readRanges, recordRanges } from '../db/batch-ranges.ts'
import { beginBatchRun, endBatchRun } from '../db/batch-runs.ts'
import { InvalidConfigError } from '../db/errors.ts'
import type { Json } from '../db/json.ts'
import { messageOf } from '../db/message-of.ts'
import { reached } from '../db/steps.ts'
import type { ChunkError } from './batch-chunk.ts'
import { type BatchDefinition, type HookContext, sourceOf } from './batch-definition.ts'
import { Hold } from './batch-hold.ts'
import {
  type BatchOutcome,
  type BatchTiming,
  isPassing,
  JobFailure,
  RangeRun,
  type RunControl,
} from './batch-range.ts'
import {
  type BatchWork,
  hookContext,
  isCommitted,
  resolveSteps,
  sourceDatabase,
  stageStep,
} from './batch-step.ts'
import type { JobContext } from './context.ts'
import { parseParams, unknownBatchJob } from './enqueue-batch.ts'
import { OneAtATime } from './one-at-a-time.ts'
import { pause } from './pause.ts'
import { retryFailedRows } from './retry-failed-rows.ts'

/**
 * Runs a batch job: chunk after chunk, each one staged transaction named `<jobId>_progress_<n>` that holds the chunk's
 * work and its new position. Nothing but the database has to agree, so a chunk in doubt is committed forward.
 *
 * With `parallel` the source is cut into ranges, whose chunks are named `<jobId>_r<range>_progress_<n>`; so many of them
 * are worked on at once, and when one runs dry, what is left of the largest is cut in two. The job is completed when the
 * table says of every range that nothing is left.
 *
 * A chunk that keeps failing is narrowed down to the rows that fail by themselves (chunk-plan.ts). Those are set aside
 * while the rest commits, up to the definition's `skipLimit`; then the job fails, and can be resumed.
 *
 * The races, and what closes them:
 * 1. Killed between PREPARE and COMMIT PREPARED: the chunk is in doubt. The next run commits it before it reads the
 *    position.
 * 2. A PREPARE that arrives after the next run looked. Position and name are unique: one of the two fails (23505) or
 *    waits (55P03), and the run resolves and reads again.
 * 3. Two runs of one job (BullMQ delivers twice when a lock is lost). The same: each chunk commits once, whoever is
 *    late reads the position again. What failed because of the other is no failure: the position has moved.
 * 4. Paused or cancelled while a chunk is under way: the chunk commits, and the state is seen after it.
 * 5. A row that is to be set aside is no longer the next one: it is read again in the transaction that passes it over,
 *    and compared by its key.
 * 6. A range is split while another run reads a chunk of it with the old end. The split takes the range's next number, so
 *    that chunk fails as in 3; whoever reads that number reads the new end with it (one statement).
 * 7. Two runs make ranges of a new job, from different samples: the row of the job is locked, and the later one finds those
 *    of the first.
 * 8. A run ends while another one still works on a range: it looks into the table before it completes the job.
 */
export type { BatchOutcome } from './batch-range.ts'

export type RunBatchOptions = Partial<BatchTiming> & {
  /** called when chunks were committed, at most once a second, and at the end */
  onProgress?: (progress: RunProgress) => void
}

export type RunProgress = {
  /** of the job, those included that were set aside */
  rows: number
  /** null where the source cannot tell */
  expected: number | null
}

const defaultTiming: BatchTiming = { maxFailures: 3, backoffMs: 50, maxBackoffMs: 30_000 }

const progressEveryMs = 1_000

export async function runBatch(
  ctx: JobContext,
  definitions: ReadonlyMap<string, BatchDefinition>,
  jobId: string,
  signal: AbortSignal,
  options: RunBatchOptions = {},
): Promise<BatchOutcome> {
  const { sql } = ctx.databases.primary
  const job = await findBatchJob(sql, jobId)
  if (!job) throw unknownBatchJob(jobId)
  if (job.status === 'completed' || job.status === 'failed') return job.status
  const definition = definitions.get(job.batch)
  if (!definition) {
    throw new InvalidConfigError([
      `batch job ${jobId} is of the batch ${job.batch}, which this worker's config lacks`,
    ])
  }
  const params = await parseParams(definition, job.params)
  await ctx.lease.hold()
  const work = { ctx, definition, source: sourceOf(definition, params), job, params, signal }
  return new BatchRun(work, options).run()
}

/** What a run does with its job between two chunks. */
const letGoes: Partial<Record<BatchStatus, BatchStatus>> = {
  queued: 'running',
  pausing: 'paused',
  cancelling: 'cancelled',
}

class BatchRun implements RunControl {
  readonly timing: BatchTiming
  readonly #work: BatchWork
  readonly #hold: Hold
  readonly #until: number
  readonly #onProgress: RunBatchOptions['onProgress']
  /** those that nobody works on just now */
  #waiting: BatchRange[] = []
  readonly #running = new Set<RangeRun>()
  readonly #choosing = new OneAtATime()
  readonly #aside = new OneAtATime()
  #record: string | undefined
  #chunks = 0n
  #rows = 0n
  #rowsBefore = 0n
  #reportedAt = Number.NEGATIVE_INFINITY

  constructor(work: BatchWork, { onProgress, ...timing }: RunBatchOptions) {
    this.timing = { ...defaultTiming, ...timing }
    this.#work = work
    this.#hold = new Hold(work)
    this.#until = performance.now() + (work.definition.maxRunMs ?? Number.POSITIVE_INFINITY)
    this.#onProgress = onProgress
  }

  async run(): Promise<BatchOutcome> {
    const outcome = await this.#run()
    this.#report(true)
    await this.#recordEnd(outcome)
    return outcome
  }

  get timeIsOver(): boolean {
    return performance.now() >= this.#until
  }

  hold(): Promise<BatchOutcome | undefined> {
    return this.#hold.wait(() => this.letGo())
  }

  moved(rows: bigint): void {
    this.#chunks++
    this.#rows += rows
    this.#report(false)
  }

  async settingAside<T>({ cause, firstKey }: ChunkError, act: () => Promise<T>): Promise<T> {
    return this.#aside.run(async () => {
      const { ctx, job, definition } = this.#work
      const skipLimit = definition.skipLimit ?? 0
      const failed = await countFailures(ctx.databases.primary.sql, job.id)
      if (failed < skipLimit) return act()
      const others = failed === 0 ? '' : `${failed} rows failed before it, `
      throw new JobFailure(
        `row ${JSON.stringify(firstKey)} failed (${others}skipLimit ${skipLimit}): ${messageOf(cause)}`,
      )
    })
  }

  /** Takes up what is queued. */
  async letGo(): Promise<BatchOutcome | undefined> {
    const { ctx, job } = this.#work
    const { sql } = ctx.databases.primary
    let now: BatchStatus | undefined
    // Again where somebody asked for it right between the two statements.
    do {
      now = (await moveBatchJob(sql, job.id, letGoes)) ?? (await readBatchStatus(sql, job.id))
    } while (now !== undefined && now in letGoes)
    if (now === 'running') return undefined
    ctx.log.info({ jobId: job.id, status: now }, 'batch job lets go')
    return now === 'completed' || now === 'failed' ? now : 'stopped'
  }

  async #run(): Promise<BatchOutcome> {
    const { ctx, job, signal } = this.#work
    for (let failures = 0, waits = 0; !signal.aborted; ) {
      try {
        const ended = await this.letGo()
        if (ended) return ended
        this.#record ??= await beginBatchRun(ctx.databases.primary.sql, job.id)
        const ranges = await this.#ranges()
        if (ranges.every(({ position }) => position.last)) return await this.#complete(ranges)
        const outcome = await this.#runRanges(ranges)
        // Every range that this run knows of is dry: whether they all are, the table says.
        if (outcome !== 'dry') return outcome
        failures = 0
        waits = 0
      } catch (error) {
        if (signal.aborted) break
        if (error instanceof JobFailure) return this.#fail(error.message)
        if (!isPassing(error) && ++failures >= this.timing.maxFailures) return this.#fail(messageOf(error))
        const { backoffMs, maxBackoffMs } = this.timing
        const waitMs = Math.random() * Math.min(maxBackoffMs, backoffMs * 2 ** ++waits)
        ctx.log.warn({ err: error, jobId: job.id, waitMs: Math.round(waitMs) }, 'batch job waits')
        await pause(waitMs, signal)
      }
    }
    return 'stopped'
  }

  /** Commits what is in doubt of this job, then reads where it stands; the first run makes the ranges. */
  async #ranges(): Promise<BatchRange[]> {
    const { ctx, job } = this.#work
    const { primary } = ctx.databases
    for (const name of await resolveSteps(this.#work, `${job.id}_`))
      ctx.log.info({ name }, 'committed a step that was in doubt')
    let ranges = await readRanges(primary.sql, job.id)
    if (ranges.length === 0) {
      await this.#prepare()
      await recordRanges(primary, job.id, await this.#boundaries())
      await reached('batch.ranges-recorded')
      ranges = await readRanges(primary.sql, job.id)
    }
    this.#rowsBefore = ranges.reduce((sum, { position }) => sum + position.rowsTotal, 0n) - this.#rows
    return ranges
  }

  async #boundaries(): Promise<readonly Json[]> {
    const { definition, source, job } = this.#work
    const { parallel = 1 } = definition
    if (parallel === 1) return []
    if (!source.split)
      throw new JobFailure(`the source of ${job.batch} cannot be split, so \`parallel\` has to go`)
    return (await source.split(sourceDatabase(this.#work).sql, null, null, parallel)).boundaries
  }

  async #runRanges(ranges: readonly BatchRange[]): Promise<BatchOutcome | 'dry'> {
    const { parallel = 1 } = this.#work.definition
    this.#waiting = ranges.filter(({ position }) => !position.last)
    const ends = await Promise.allSettled(Array.from({ length: parallel }, () => this.#lane()))
    const failure = ends.find((end) => end.status === 'rejected')
    if (failure) throw failure.reason
    const outcomes = ends.flatMap((end) => (end.status === 'fulfilled' ? end.value : []))
    return outcomes.find((outcome) => outcome !== 'dry') ?? 'dry'
  }

  /** Range after range, as long as there is one that nobody works on, or one that is worth splitting. */
  async #lane(): Promise<BatchOutcome | 'dry'> {
    for (;;) {
      const range = await this.#choosing.run(() => this.#nextRange())
      if (!range) return 'dry'
      const run = new RangeRun(this.#work, this, range)
      this.#running.add(run)
      try {
        const outcome = await run.run()
        if (outcome !== 'dry') return outcome
      } catch (error) {
        // What the other lanes still do, they do until they see it.
        if (error instanceof JobFailure) await this.#fail(error.message)
        throw error
      } finally {
        this.#running.delete(run)
      }
    }
  }

  async #nextRange(): Promise<BatchRange | undefined> {
    const waiting = this.#waiting.shift()
    if (waiting || this.#running.size === 0) return waiting
    const candidates = [...this.#running]
    const left = await Promise.all(candidates.map((run) => run.left()))
    const most = left.indexOf(Math.max(...left))
    return candidates[most]?.split()
  }

  async #prepare(): Promise<void> {
    const { ctx, job, definition, source } = this.#work
    if (source.count && job.rowsExpected === null) {
      const expected = await source.count(sourceDatabase(this.#work).sql)
      await recordExpected(ctx.databases.primary.sql, job.id, expected)
      job.rowsExpected = expected.rows
    }
    if (definition.prepareRun)
      await this.#once('prepared', async (context) => definition.prepareRun?.(context))
  }

  async #complete(ranges: readonly BatchRange[]): Promise<BatchOutcome> {
    const { ctx, job, definition, signal } = this.#work
    await retryFailedRows(this.#work)
    if (signal.aborted) return 'stopped'
    if (definition.completed)
      await this.#once('completed', async (context) => definition.completed?.(context))
    const moved = await moveBatchJob(ctx.databases.primary.sql, job.id, {
      running: 'completed',
      pausing: 'completed',
    })
    if (moved === undefined) return (await this.letGo()) ?? 'stopped'
    const rows = ranges.reduce((sum, { position }) => sum + position.rowsTotal, 0n)
    ctx.log.info({ jobId: job.id, ranges: ranges.length, rows: String(rows) }, 'batch job completed')
    return 'completed'
  }

  /** Database work that belongs to the job as a whole: its name can commit only once, whoever else tries. */
  async #once(
    step: 'prepared' | 'completed',
    hook: (context: HookContext<unknown>) => Promise<void>,
  ): Promise<void> {
    const name = `${this.#work.job.id}_${step}`
    if (await isCommitted(this.#work, name)) return
    await stageStep(this.#work, name, (txs) => hook(hookContext(this.#work, txs, step)))
  }

  async #fail(why: string): Promise<'failed'> {
    const { ctx, job } = this.#work
    const { sql } = ctx.databases.primary
    if (await moveBatchJob(sql, job.id, { running: 'failed', pausing: 'failed' }, why))
      ctx.log.error({ jobId: job.id, why }, 'batch job failed')
    return 'failed'
  }

  #report(now: boolean): void {
    if (!this.#onProgress || this.#chunks === 0n) return
    if (!now && performance.now() - this.#reportedAt < progressEveryMs) return
    this.#reportedAt = performance.now()
    const { rowsExpected } = this.#work.job
    const expected = rowsExpected === null ? null : Number(rowsExpected)
    this.#onProgress({ rows: Number(this.#rowsBefore + this.#rows), expected })
  }

  /** For the history alone: a run whose end could not be recorded shows as one that never ended. */
  async #recordEnd(outcome: BatchOutcome): Promise<void> {
    if (this.#record === undefined) return
    const { ctx, job } = this.#work
    const end = { outcome, chunks: this.#chunks, rows: this.#rows }
    await endBatchRun(ctx.databases.primary.sql, this.#record, end).catch((err: unknown) =>
      ctx.log.warn({ err, jobId: job.id }, 'the end of a run was not recorded'),
    )
  }
}
