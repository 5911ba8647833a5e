import { countFailures, failAgain, nextToRetry, settleFailure } from '../db/batch-failures.ts'
import { findBatchJob, moveBatchJob, readBatchStatus, recordExpected, recordHold } from '../db/batch-jobs.ts'
import { type BatchPosition, readBatchPosition } from '../db/batch-positions.ts'
import { FencedError, InvalidConfigError, NoSlotsError, UnknownOutcomeError } from '../db/errors.ts'
import { sameJson } from '../db/json.ts'
import { messageOf } from '../db/message-of.ts'
import { isConnectionLoss, isContention, sqlstateOf } from '../db/sqlstate.ts'
import { resolveForward } from '../db/staged-transaction.ts'
import { readThrottleSignals } from '../db/throttle-signals.ts'
import {
  type BatchWork,
  ChunkError,
  type CommittedChunk,
  hookContext,
  runChunk,
  runHook,
  setRowAside,
  stageStep,
} from './batch-chunk.ts'
import type { BatchDefinition } from './batch-definition.ts'
import { ChunkPlan } from './chunk-plan.ts'
import type { JobContext } from './context.ts'
import { parseParams, unknownBatchJob } from './enqueue-batch.ts'
import { pause } from './pause.ts'
import { Throttle } from './throttle.ts'

/**
 * Runs a batch job: chunk after chunk, each one staged transaction named `<jobId>_progress_<n>` that holds the chunk's
 * work and its new position. Nothing but the database has to agree, so a chunk in doubt is committed forward.
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
 */
export type BatchOutcome = 'completed' | 'failed' | 'stopped'

export type BatchTiming = {
  /** how often a chunk, or one row by itself, is tried before it counts as failing */
  maxFailures: number
  backoffMs: number
  maxBackoffMs: number
}

const defaultTiming: BatchTiming = { maxFailures: 3, backoffMs: 50, maxBackoffMs: 30_000 }

export async function runBatch(
  ctx: JobContext,
  definitions: ReadonlyMap<string, BatchDefinition>,
  jobId: string,
  signal: AbortSignal,
  timing: BatchTiming = defaultTiming,
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
  const run = new BatchRun({ ctx, definition, job, params, signal }, timing)
  return run.run()
}

class BatchRun {
  readonly #work: BatchWork
  readonly #timing: BatchTiming
  readonly #plan: ChunkPlan
  readonly #throttle: Throttle | undefined
  #size: number
  /** as the row says it */
  #held: string | null
  #failures = 0
  #reached = 0n

  constructor(work: BatchWork, timing: BatchTiming) {
    this.#work = work
    this.#timing = timing
    const { chunkSize = 1000, throttle: limits, source } = work.definition
    this.#size = typeof chunkSize === 'number' ? chunkSize : chunkSize.min
    this.#plan = new ChunkPlan(this.#size)
    this.#held = work.job.hold
    const { clock, databases, installation } = work.ctx
    const read = () => readThrottleSignals(databases.primary, installation, source.tables)
    this.#throttle = limits && new Throttle({ limits, clock, read })
  }

  async run(): Promise<BatchOutcome> {
    const { ctx, job, definition, signal } = this.#work
    const until = performance.now() + (definition.maxRunMs ?? Number.POSITIVE_INFINITY)
    let known: ChunkError | undefined
    let waits = 0
    while (!signal.aborted) {
      try {
        let position = await this.#resolveAndRead()
        // Whatever failed, another run got further meanwhile: it failed because of that, and is no failure.
        if (position.n !== this.#reached) this.#restart()
        this.#reached = position.n
        const ended = await this.#letGo()
        if (ended) return ended
        if (position.n === 0n) await this.#prepare()
        while (!position.last && !signal.aborted && performance.now() < until) {
          const held = await this.#hold()
          if (held) return held
          if (signal.aborted) break
          const after = await this.#step(position, known)
          position = after.position
          this.#reached = position.n
          known = undefined
          waits = 0
          const stop = after.status === 'running' ? undefined : await this.#letGo()
          if (stop) return stop
        }
        if (!position.last) return 'stopped'
        return await this.#complete(position)
      } catch (error) {
        if (signal.aborted) break
        if (error instanceof SkipLimitError) return this.#fail(error.message)
        if (error instanceof ChunkError && !isPassing(error)) {
          known = error
          const gaveUp = await this.#failed(error)
          if (gaveUp !== undefined) return this.#fail(gaveUp)
          if (this.#failures === 0) continue
        } else if (!isPassing(error) && ++this.#failures >= this.#timing.maxFailures) {
          return this.#fail(messageOf(error))
        }
        const { backoffMs, maxBackoffMs } = this.#timing
        const waitMs = Math.random() * Math.min(maxBackoffMs, backoffMs * 2 ** ++waits)
        ctx.log.warn(
          { err: error, jobId: job.id, waitMs: Math.round(waitMs) },
          'chunk not committed, trying again',
        )
        await pause(waitMs, signal)
      }
    }
    return 'stopped'
  }

  #restart(): void {
    this.#failures = 0
    this.#plan.reset()
  }

  async #step(position: BatchPosition, known: ChunkError | undefined): Promise<CommittedChunk> {
    const { setAside } = this.#plan.next
    let after: CommittedChunk | undefined
    if (setAside && known) {
      await this.#checkSkipLimit(known)
      after = await setRowAside(this.#work, position, known.firstKey, known.cause)
      if (after) {
        this.#work.ctx.log.warn(
          { jobId: this.#work.job.id, row: known.firstKey, err: known.cause },
          'row set aside',
        )
      } else this.#plan.reset()
    }
    const began = performance.now()
    const whole = !this.#plan.narrowing
    after ??= await runChunk(this.#work, position, this.#plan.next.size)
    this.#plan.succeeded()
    if (whole) this.#adapt(performance.now() - began)
    this.#failures = 0
    return after
  }

  /** Towards the target, by no more than twice at once: one slow chunk says little. */
  #adapt(tookMs: number): void {
    const { chunkSize } = this.#work.definition
    if (typeof chunkSize !== 'object') return
    const factor = Math.min(2, Math.max(0.5, chunkSize.targetMs / Math.max(1, tookMs)))
    this.#size = Math.min(chunkSize.max, Math.max(chunkSize.min, Math.round(this.#size * factor)))
    this.#plan.resize(this.#size)
  }

  /** Waits until the throttle lets the next chunk begin; the outcome where the run has to end meanwhile. */
  async #hold(): Promise<BatchOutcome | undefined> {
    if (!this.#throttle) return undefined
    const { ctx, job, signal } = this.#work
    const { sql } = ctx.databases.primary
    for (;;) {
      const { hold = null, unknown } = await this.#throttle.check(signal)
      if (hold !== this.#held) {
        await recordHold(sql, job.id, hold)
        ctx.log.info({ jobId: job.id, hold, unknown }, hold === null ? 'goes on' : 'holds')
        this.#held = hold
      }
      if (hold === null || signal.aborted) return undefined
      await ctx.clock.pause(this.#work.definition.throttle?.everyMs ?? 1_000, signal)
      const ended = await this.#letGo()
      if (ended) return ended
    }
  }

  /** A failing chunk is tried again or divided; returns why the job has to fail where it can be neither. */
  async #failed({ cause, rows }: ChunkError): Promise<string | undefined> {
    this.#failures++
    const { maxFailures } = this.#timing
    const alone = this.#plan.next.size === 1 || rows === 1
    const tries = isOfTheData(cause) || (this.#plan.narrowing && !alone) ? 1 : maxFailures
    if (this.#failures < tries) return undefined
    // The source itself cannot be read: there is no row to set aside.
    if (rows === 0) return this.#failures < maxFailures ? undefined : messageOf(cause)
    const now = await readBatchPosition(this.#work.ctx.databases.primary.sql, this.#work.job.id, 0)
    if ((now?.n ?? 0n) === this.#reached) this.#plan.failed(rows)
    this.#failures = 0
    return undefined
  }

  async #checkSkipLimit({ cause, firstKey }: ChunkError): Promise<void> {
    const { ctx, job, definition } = this.#work
    const skipLimit = definition.skipLimit ?? 0
    const failed = await countFailures(ctx.databases.primary.sql, job.id)
    if (failed < skipLimit) return
    const others = failed === 0 ? '' : `${failed} rows failed before it, `
    throw new SkipLimitError(
      `row ${JSON.stringify(firstKey)} failed (${others}skipLimit ${skipLimit}): ${messageOf(cause)}`,
    )
  }

  /** Commits what is in doubt of this job, then reads where it stands. */
  async #resolveAndRead(): Promise<BatchPosition> {
    const { ctx, job } = this.#work
    const { primary } = ctx.databases
    const resolved = await resolveForward(primary, ctx.installation, (name) => name.startsWith(`${job.id}_`))
    for (const { name, attempt } of resolved)
      ctx.log.info({ name, attempt }, 'committed a chunk that was in doubt')
    return (
      (await readBatchPosition(primary.sql, job.id, 0)) ?? { n: 0n, cursor: null, rowsTotal: 0n, last: false }
    )
  }

  /** The outcome where this run has to end: paused, cancelled, or ended by another run. Takes up what is queued. */
  async #letGo(): Promise<BatchOutcome | undefined> {
    const { ctx, job } = this.#work
    const { sql } = ctx.databases.primary
    const status = await moveBatchJob(sql, job.id, {
      queued: 'running',
      pausing: 'paused',
      cancelling: 'cancelled',
    })
    const now = status ?? (await readBatchStatus(sql, job.id))
    if (now === 'running') return undefined
    ctx.log.info({ jobId: job.id, status: now }, 'batch job lets go')
    return now === 'completed' || now === 'failed' ? now : 'stopped'
  }

  async #prepare(): Promise<void> {
    const { ctx, job, definition } = this.#work
    if (definition.source.count && job.rowsExpected === null) {
      const expected = await definition.source.count(ctx.databases.primary.sql)
      await recordExpected(ctx.databases.primary.sql, job.id, expected)
    }
    if (definition.prepareRun)
      await runHook(this.#work, 'prepared', (context) => definition.prepareRun?.(context))
  }

  async #complete(position: BatchPosition): Promise<BatchOutcome> {
    const { ctx, job, definition } = this.#work
    const { sql } = ctx.databases.primary
    await this.#retryFailures()
    if (this.#work.signal.aborted) return 'stopped'
    if (definition.completed)
      await runHook(this.#work, 'completed', (context) => definition.completed?.(context))
    const status = await moveBatchJob(sql, job.id, { running: 'completed', pausing: 'completed' })
    if (status === undefined) return (await this.#letGo()) ?? 'stopped'
    ctx.log.info(
      { jobId: job.id, chunks: String(position.n), rows: String(position.rowsTotal) },
      'batch job completed',
    )
    return 'completed'
  }

  /** Rows for which somebody asked for another try, each by itself. */
  async #retryFailures(): Promise<void> {
    const { ctx, job, definition, signal } = this.#work
    const { sql } = ctx.databases.primary
    for (;;) {
      const row = await nextToRetry(sql, job.id)
      if (!row || signal.aborted) return
      const name = `${job.id}_retry_${row.id}_${row.tries}`
      try {
        await stageStep(this.#work, name, async (tx) => {
          const { rows, keys } = await definition.source.read(tx, row.cursor, 1)
          const found = sameJson(keys[0] ?? null, row.rowKey)
          if (found) await definition.process(rows, { ...hookContext(this.#work, tx, name), chunk: 0n })
          await settleFailure(tx, row.id, found ? 'resolved' : 'gone')
        })
      } catch (error) {
        if (isPassing(error)) throw error
        await failAgain(sql, row.id, error)
      }
    }
  }

  async #fail(why: string): Promise<'failed'> {
    const { ctx, job } = this.#work
    ctx.log.error({ jobId: job.id, why }, 'batch job failed')
    await moveBatchJob(ctx.databases.primary.sql, job.id, { running: 'failed', pausing: 'failed' }, why)
    return 'failed'
  }
}

class SkipLimitError extends Error {}

/** The same rows fail in the same way again: a value that does not fit, or a constraint (SQLSTATE classes 22 and 23). */
function isOfTheData(error: unknown): boolean {
  return /^2[23]/.test(sqlstateOf(error) ?? '')
}

/** Contention, fencing and a lost connection are nobody's failure: the run resolves, reads again and goes on. */
function isPassing(error: unknown): boolean {
  const cause = error instanceof ChunkError ? error.cause : error
  return (
    cause instanceof FencedError ||
    cause instanceof NoSlotsError ||
    cause instanceof UnknownOutcomeError ||
    isContention(cause) ||
    isConnectionLoss(cause)
  )
}
