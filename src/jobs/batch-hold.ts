import { recordHold } from '../db/batch-jobs.ts'
import { readThrottleSignals } from '../db/throttle-signals.ts'
import type { BatchOutcome } from './batch-range.ts'
import { type BatchWork, sourceDatabase } from './batch-step.ts'
import { Throttle } from './throttle.ts'

/** Holds a job for the sake of its database, and says why in the job's row. All ranges of a run share one. */
export class Hold {
  readonly #work: BatchWork
  readonly #throttle: Throttle | undefined
  /** as the row says it */
  #shown: string | null

  constructor(work: BatchWork) {
    const { ctx, definition, source, job } = work
    this.#work = work
    this.#shown = job.hold
    const { clock, installation } = ctx
    const read = () => readThrottleSignals(sourceDatabase(work), installation, source.tables)
    this.#throttle = definition.throttle && new Throttle({ limits: definition.throttle, clock, read })
  }

  /** Waits until the throttle lets the next chunk begin; what `letGo` says where the run has to end meanwhile. */
  async wait(letGo: () => Promise<BatchOutcome | undefined>): Promise<BatchOutcome | undefined> {
    if (!this.#throttle) return undefined
    const { ctx, definition, signal } = this.#work
    for (;;) {
      const { hold = null, unknown } = await this.#throttle.check(signal)
      await this.#show(hold, unknown)
      if (hold === null || signal.aborted) return undefined
      await ctx.clock.pause(definition.throttle?.everyMs ?? 1_000, signal)
      const ended = await letGo()
      if (ended) return ended
    }
  }

  async #show(hold: string | null, unknown: readonly string[]): Promise<void> {
    if (hold === this.#shown) return
    const { ctx, job } = this.#work
    this.#shown = hold
    await recordHold(ctx.databases.primary.sql, job.id, hold)
    ctx.log.info({ jobId: job.id, hold, unknown }, hold === null ? 'goes on' : 'holds')
  }
}
