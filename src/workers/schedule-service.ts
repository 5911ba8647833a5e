import { InvalidConfigError } from '../db/errors.ts'
import {
  assertSchedules,
  declareSchedule,
  listUnasserted,
  readSchedules,
  readServerTime,
  removeUnasserted,
} from '../db/schedules.ts'
import { alertOverdueSchedules, type Looked, runSchedules, type ScheduledRun } from '../jobs/run-schedules.ts'
import { scheduleProblems } from '../jobs/schedule-definition.ts'
import type { Context } from './context.ts'

/** How far a worker's clock may be ahead of the database's for its ticks to wait instead of coming to nothing. */
const earlyMs = 5_000
const forgetMs = 180_000

/**
 * The schedules of this process's config. The table says what is done, the queue only when to look: a tick that is lost
 * is made up for by the look at boot, every minute, and whenever the queue had forgotten a schedule.
 *
 * A config whose worker started last decides what a schedule is. A schedule that no running worker's config has had for
 * three minutes is forgotten by the others, of which one has been there as long: after a time in which nobody was there
 * at all, nothing is forgotten.
 */
export class ScheduleService {
  readonly #ctx: Context
  readonly #names: readonly string[]
  readonly #queueRun: (run: ScheduledRun) => Promise<void>
  readonly #forgetMs: number
  #startedAt = Number.POSITIVE_INFINITY

  /** `queueRun` tells the queue of a run that is recorded. */
  constructor(
    ctx: Context,
    queueRun: (run: ScheduledRun) => Promise<void>,
    options: { forgetMs?: number } = {},
  ) {
    this.#ctx = ctx
    this.#queueRun = queueRun
    this.#names = [...ctx.config.schedules.keys()]
    // Whoever is there says so once in a round of recovery.
    this.#forgetMs = options.forgetMs ?? Math.max(forgetMs, 3 * ctx.config.timing.recoverEveryMs)
  }

  get any(): boolean {
    return this.#names.length > 0
  }

  /** Records what the config says. Throws InvalidConfigError with each schedule whose parameters or input are wrong. */
  async start(): Promise<void> {
    const { config } = this.#ctx
    const problems = await scheduleProblems(config.schedules.values(), config)
    if (problems.length > 0) throw new InvalidConfigError(problems)
    await this.#declare(this.#names)
    this.#startedAt = this.#ctx.clock.now()
  }

  /** What does not depend on ticks. It never throws: recovery is not to wait for it. */
  async round(): Promise<void> {
    try {
      await this.#assertTable()
      await this.look()
      await alertOverdueSchedules(this.#ctx, this.#names)
      await this.#forget()
    } catch (err) {
      this.#ctx.log.warn({ err }, 'the schedules could not be looked at; the next round does')
    }
  }

  /** Enqueues what is due. */
  async look(names: readonly string[] = this.#names): Promise<Looked[]> {
    if (names.length === 0) return []
    const { config, log } = this.#ctx
    const looked = await runSchedules(this.#ctx, config, names)
    for (const run of looked.flatMap(({ runs }) => runs)) {
      await this.#queueRun(run).catch((err: unknown) => {
        log.warn({ err, jobId: run.jobId }, 'recorded, but not queued yet; a worker will')
      })
    }
    return looked
  }

  /** The queue says that it is time. */
  async tick(name: string, signal: AbortSignal): Promise<void> {
    if (!this.#names.includes(name)) return
    const [looked] = await this.look([name])
    if (!looked || looked.runs.length > 0 || looked.inMs > earlyMs) return
    // Another look was faster, or the clock that made the tick is ahead of the database's.
    await this.#ctx.clock.pause(looked.inMs + 1, signal)
    if (!signal.aborted) await this.look([name])
  }

  /** Asserts the schedules in the queue. One that was not there may have missed its time. */
  async assertQueue(): Promise<void> {
    if (!this.any) return
    const { queues, log } = this.#ctx
    for (const { name, cron, tz } of await readSchedules(this.#ctx.databases.primary.sql, this.#names)) {
      try {
        const job = { name: 'schedule', id: name, data: { schedule: name } }
        if (await queues.scheduleCron('schedules', job, { cron, tz })) await this.look([name])
      } catch (err) {
        log.warn({ err, schedule: name }, 'not asserted in the queue; the next round does')
      }
    }
  }

  /** Says that they are here; what others have forgotten meanwhile begins anew. */
  async #assertTable(): Promise<void> {
    if (!this.any) return
    const { sql } = this.#ctx.databases.primary
    await assertSchedules(sql, this.#names)
    const there = new Set((await readSchedules(sql, this.#names)).map(({ name }) => name))
    await this.#declare(this.#names.filter((name) => !there.has(name)))
  }

  async #declare(names: readonly string[]): Promise<void> {
    if (names.length === 0) return
    const { sql } = this.#ctx.databases.primary
    const now = await readServerTime(sql)
    for (const name of names) {
      const schedule = this.#ctx.config.schedules.get(name)
      if (schedule) await declareSchedule(sql, schedule, now)
    }
  }

  /** The queue first: what is left there without a row would be seen by nobody. */
  async #forget(): Promise<void> {
    if (this.#ctx.clock.now() - this.#startedAt < this.#forgetMs) return
    const { sql } = this.#ctx.databases.primary
    for (const name of await listUnasserted(sql, this.#forgetMs)) {
      if (this.#names.includes(name)) continue
      await this.#ctx.queues.unschedule('schedules', name)
      if (await removeUnasserted(sql, name, this.#forgetMs))
        this.#ctx.log.info({ schedule: name }, 'no config has this schedule any more; forgotten')
    }
  }
}
