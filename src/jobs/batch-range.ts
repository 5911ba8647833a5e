import { type BatchRange, readRanges, splitRange } from '../db/batch-ranges.ts'
import { isUntrusted } from '../db/connection-url.ts'
import { deferred } from '../db/deferred.ts'
import { FencedError, InvalidPayloadError, isForLater, NameInUseError } from '../db/errors.ts'
import type { Json } from '../db/json.ts'
import { messageOf } from '../db/message-of.ts'
import { isConnectionLoss, isContention, sqlstateOf } from '../db/sqlstate.ts'
import { reached } from '../db/steps.ts'
import { newAttempt } from '../db/transaction-name.ts'
import {
  ChunkError,
  type CommittedChunk,
  chunkPrefix,
  type ProcessedChunk,
  runChunk,
  setRowAside,
} from './batch-chunk.ts'
import { type BatchWork, resolveSteps, sourceDatabase } from './batch-step.ts'
import { ChunkPlan } from './chunk-plan.ts'
import { pause } from './pause.ts'
import { ReadAhead } from './read-ahead.ts'

export type BatchOutcome = 'completed' | 'failed' | 'stopped'

export type BatchTiming = {
  /** how often a chunk, or one row by itself, is tried before it counts as failing */
  maxFailures: number
  backoffMs: number
  maxBackoffMs: number
}

/** What the ranges of one run share. */
export type RunControl = {
  readonly timing: BatchTiming
  /** the time is over in which this run begins chunks */
  readonly timeIsOver: boolean
  /** The outcome where the run has to end: paused, cancelled, or ended by another one. */
  letGo(): Promise<BatchOutcome | undefined>
  /** Waits until the next chunk may begin; the outcome where the run has to end meanwhile. */
  hold(): Promise<BatchOutcome | undefined>
  /** Runs `act` when one more row may be set aside, one at a time; throws JobFailure when none may. */
  settingAside<T>(failed: ChunkError, act: () => Promise<T>): Promise<T>
  /** A chunk was committed. */
  moved(rows: bigint): void
}

/** The job cannot go on; its message says why. */
export class JobFailure extends Error {}

/** A range that has more than so many chunks left is worth splitting. */
const worthSplitting = 4

/** One range in this run: chunk after chunk, narrowing down what fails, until nothing is left. */
export class RangeRun {
  readonly #work: BatchWork
  readonly #control: RunControl
  readonly #plan: ChunkPlan
  readonly #ahead: ReadAhead | undefined
  #at: BatchRange
  #size: number
  #failures = 0
  #ended = false
  #splitAsked: ReturnType<typeof deferred<BatchRange | undefined>> | undefined

  constructor(work: BatchWork, control: RunControl, at: BatchRange) {
    this.#work = work
    this.#control = control
    this.#at = at
    const { chunkSize = 1000 } = work.definition
    this.#size = typeof chunkSize === 'number' ? chunkSize : chunkSize.min
    this.#plan = new ChunkPlan(this.#size)
    const { readAhead } = work.definition
    if (readAhead !== false) this.#ahead = new ReadAhead(work, readAhead === true)
  }

  /** Resolves to `dry` when nothing is left of it. Throws JobFailure. */
  async run(): Promise<BatchOutcome | 'dry'> {
    try {
      return await this.#run()
    } finally {
      this.#ended = true
      this.#splitAsked?.resolve(undefined)
      await this.#ahead?.end()
    }
  }

  /** About how many rows are left. */
  async left(): Promise<number> {
    return (await this.#half()).rows
  }

  /** Cuts off a part of what is left, before the next chunk begins; undefined when too little is left. */
  async split(): Promise<BatchRange | undefined> {
    if (this.#ended) return undefined
    this.#splitAsked ??= deferred()
    return this.#splitAsked.promise
  }

  async #run(): Promise<BatchOutcome | 'dry'> {
    const { ctx, job, signal } = this.#work
    let known: ChunkError | undefined
    let waits = 0
    while (!signal.aborted) {
      try {
        while (!this.#at.position.last && !signal.aborted && !this.#control.timeIsOver) {
          const held = await this.#control.hold()
          if (held) return held
          if (signal.aborted) break
          await this.#splitWhereAsked()
          const { status } = await this.#step(known)
          known = undefined
          waits = 0
          const ended = status === 'running' ? undefined : await this.#control.letGo()
          if (ended) return ended
        }
        return this.#at.position.last ? 'dry' : 'stopped'
      } catch (error) {
        if (signal.aborted) break
        if (error instanceof JobFailure) throw error
        if (error instanceof ChunkError && !isPassing(error)) {
          known = error
          this.#failed(error)
        } else if (!isPassing(error) && ++this.#failures >= this.#control.timing.maxFailures) {
          throw new JobFailure(messageOf(error))
        }
        // A chunk that is narrowed down is likely to fail again, and cheap to divide: without a pause.
        if (this.#failures > 0 || !(error instanceof ChunkError) || isPassing(error)) {
          const { backoffMs, maxBackoffMs } = this.#control.timing
          const waitMs = Math.random() * Math.min(maxBackoffMs, backoffMs * 2 ** ++waits)
          ctx.log.warn(
            { err: error, jobId: job.id, range: this.#at.range, waitMs: Math.round(waitMs) },
            'chunk not committed, trying again',
          )
          await pause(waitMs, signal)
        }
        await this.#readAgain()
        const ended = await this.#control.letGo()
        if (ended) return ended
      }
    }
    return 'stopped'
  }

  async #step(known: ChunkError | undefined): Promise<CommittedChunk> {
    const aside = this.#plan.next.setAside && known ? await this.#setAside(known) : undefined
    if (aside) return this.#moved(aside)
    // What is narrowed down has failed: nobody knows what comes next.
    const whole = !this.#plan.narrowing
    const chunk = await runChunk(this.#work, this.#at, this.#plan.next.size, whole ? this.#ahead : undefined)
    if (whole) this.#adapt(chunk)
    return this.#moved(chunk)
  }

  /** Undefined where another row comes next by now. */
  async #setAside(known: ChunkError): Promise<CommittedChunk | undefined> {
    const { ctx, job } = this.#work
    const { firstKey, cause } = known
    const aside = await this.#control.settingAside(known, () =>
      setRowAside(this.#work, this.#at, firstKey, cause),
    )
    if (aside) ctx.log.warn({ jobId: job.id, row: firstKey, err: cause }, 'row set aside')
    else this.#plan.reset()
    return aside
  }

  #moved(chunk: CommittedChunk): CommittedChunk {
    const before = this.#at.position.rowsTotal
    this.#at = { ...this.#at, position: chunk.position }
    this.#control.moved(chunk.position.rowsTotal - before)
    this.#plan.succeeded()
    this.#failures = 0
    return chunk
  }

  /**
   * Towards the target, by no more than twice at once: one slow chunk says little. From the chunk's own size: it may have been
   * read before the one ahead of it changed the size.
   */
  #adapt({ size, tookMs }: ProcessedChunk): void {
    const { chunkSize } = this.#work.definition
    if (typeof chunkSize !== 'object') return
    const factor = Math.min(2, Math.max(0.5, chunkSize.targetMs / Math.max(1, tookMs)))
    this.#size = Math.min(chunkSize.max, Math.max(chunkSize.min, Math.round(size * factor)))
    this.#plan.resize(this.#size)
  }

  /** A failing chunk is tried again, or divided at the next step. Throws JobFailure where it can be neither. */
  #failed({ cause, rows }: ChunkError): void {
    this.#failures++
    const { maxFailures } = this.#control.timing
    const alone = this.#plan.next.size === 1 || rows === 1
    const tries = isOfTheData(cause) || (this.#plan.narrowing && !alone) ? 1 : maxFailures
    if (this.#failures < tries) return
    if (rows === 0) {
      // The source itself cannot be read: there is no row to set aside.
      if (this.#failures >= maxFailures) throw new JobFailure(messageOf(cause))
      return
    }
    this.#plan.failed(rows)
    this.#failures = 0
  }

  /** Commits what is in doubt of this range, then reads where it stands. */
  async #readAgain(): Promise<void> {
    const { ctx, job } = this.#work
    for (const name of await resolveSteps(this.#work, chunkPrefix(this.#work, this.#at.range)))
      ctx.log.info({ name }, 'committed a chunk that was in doubt')
    const { n } = this.#at.position
    const [now] = await readRanges(ctx.databases.primary.sql, job.id, this.#at.range)
    this.#at = now ?? this.#at
    // Whatever failed, another run got further meanwhile: it failed because of that, and is no failure.
    if (this.#at.position.n !== n) {
      this.#failures = 0
      this.#plan.reset()
    }
  }

  async #half(): Promise<{ rows: number; boundaries: readonly Json[] }> {
    const { source } = this.#work
    const { position, until } = this.#at
    if (!source.split || position.last) return { rows: 0, boundaries: [] }
    return source.split(sourceDatabase(this.#work).sql, position.cursor, until, 2)
  }

  async #splitWhereAsked(): Promise<void> {
    const asked = this.#splitAsked
    if (!asked) return
    const { ctx, job } = this.#work
    const { rows, boundaries } = await this.#half()
    const [boundary] = boundaries
    if (boundary === undefined || rows < worthSplitting * this.#size) {
      asked.resolve(undefined)
    } else {
      const { primary } = ctx.databases
      const cut = await splitRange(primary, job.id, this.#at, boundary, newAttempt(ctx.lease.id))
      await reached('batch.range-split')
      const position = { ...this.#at.position, n: this.#at.position.n + 1n }
      this.#at = { ...this.#at, until: boundary, position }
      ctx.log.info({ jobId: job.id, range: this.#at.range, into: cut.range, rows }, 'range split')
      asked.resolve(cut)
    }
    this.#splitAsked = undefined
  }
}

/**
 * The same rows fail in the same way again: a record that cannot be read, a value that does not fit, or a constraint
 * (SQLSTATE classes 22 and 23).
 */
function isOfTheData(error: unknown): boolean {
  return error instanceof InvalidPayloadError || /^2[23]/.test(sqlstateOf(error) ?? '')
}

/** Contention, fencing and a lost connection are nobody's failure: the run resolves, reads again and goes on. */
export function isPassing(error: unknown): boolean {
  const cause = error instanceof ChunkError ? error.cause : error
  return (
    cause instanceof FencedError ||
    cause instanceof NameInUseError ||
    isForLater(cause) ||
    isContention(cause) ||
    isUntrusted(cause) ||
    isConnectionLoss(cause)
  )
}
