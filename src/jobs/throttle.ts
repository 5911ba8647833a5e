import { inspect } from 'node:util'
import { deferred } from '../db/deferred.ts'
import { InvalidConfigError } from '../db/errors.ts'
import { messageOf } from '../db/message-of.ts'
import type { Reading, ThrottleSignals } from '../db/throttle-signals.ts'
import type { Clock } from './clock.ts'

/** When a batch holds for the sake of its database. A signal without a limit is not looked at. */
export type ThrottleLimits = {
  /** milliseconds that the worst standby may be behind */
  replicaLagMs?: number
  /** how many sessions may wait for locks of ours; 0: none */
  lockWaits?: number
  /** transactions; how old the oldest xmin of the server may be */
  xminAge?: number
  /** true: holds while a VACUUM, automatic or not, works on a table of the batch */
  autovacuum?: boolean
  /** bytes of WAL that a slot may retain, or that may wait for the archiver */
  walBacklogBytes?: number
  /** anything else: resolves with a reason to hold, or undefined (or an empty text); called at most every `everyMs` */
  hook?: (signal: AbortSignal) => Promise<string | undefined>
  /** a signal that crossed its limit holds until it is down to this part of it; above 0, at most 1; default 0.8 */
  release?: number
  /** how often the signals are read, at most; milliseconds; default 1000 */
  everyMs?: number
}

/** The signals that have a number for a limit. */
const measured = {
  replicaLagMs: { what: 'replica lag', show: (ms: number) => `${decimal(ms / 1000)} s` },
  lockWaits: { what: 'lock waits', show: whole },
  xminAge: { what: 'oldest xmin age', show: (age: number) => `${whole(age)} transactions` },
  walBacklogBytes: { what: 'WAL backlog', show: (bytes: number) => `${decimal(bytes / 2 ** 20)} MiB` },
} as const satisfies Partial<Record<keyof ThrottleSignals, unknown>>

type Measured = keyof typeof measured
const measuredNames = Object.keys(measured) as Measured[]

/** Throws InvalidConfigError with all that is wrong with the limits. */
export function checkThrottleLimits(limits: ThrottleLimits): void {
  const problems: string[] = []
  const check = (name: keyof ThrottleLimits, ok: (value: number) => boolean, must: string) => {
    const value: unknown = limits[name]
    if (value === undefined || (typeof value === 'number' && Number.isFinite(value) && ok(value))) return
    problems.push(`throttle.${name} must be ${must}; got ${inspect(value)}`)
  }
  const positive = (value: number) => value > 0
  check('replicaLagMs', positive, 'a number of milliseconds above 0')
  check(
    'lockWaits',
    (value) => Number.isInteger(value) && value >= 0,
    'a whole number of sessions, 0 or more',
  )
  check('xminAge', positive, 'a number of transactions above 0')
  check('walBacklogBytes', positive, 'a number of bytes above 0')
  check('release', (value) => value > 0 && value <= 1, 'above 0 and at most 1')
  check('everyMs', positive, 'a number of milliseconds above 0')
  const { autovacuum, hook } = limits as Record<'autovacuum' | 'hook', unknown>
  if (autovacuum !== undefined && typeof autovacuum !== 'boolean')
    problems.push(`throttle.autovacuum must be true or false; got ${inspect(autovacuum)}`)
  if (hook !== undefined && typeof hook !== 'function')
    problems.push(`throttle.hook must be a function; got ${typeof hook}`)
  if (!readsSignals(limits) && hook === undefined)
    problems.push('throttle has no limit and no hook; set one, or leave throttle out')
  if (problems.length > 0) throw new InvalidConfigError(problems)
}

function readsSignals(limits: ThrottleLimits): boolean {
  return limits.autovacuum === true || measuredNames.some((name) => limits[name] !== undefined)
}

export type Judgement = {
  /** the signals that crossed their limit and have not come down since */
  holding: ReadonlySet<Measured>
  /** why to hold; empty: go on */
  reasons: readonly string[]
  /** of which signals with a limit something could not be seen, and why */
  unknown: readonly string[]
}

/**
 * What signals mean under these limits, for one that held before for `holding`.
 *
 * A signal holds above its limit, and then until it is at or below `release` times the limit: without that gap a batch would
 * start and stop with every chunk. What is unknown neither starts a hold, or a login that may not see the standbys could
 * never run a batch, nor ends one, since nothing says that it is over; it is named in `unknown` either way.
 */
export function judge(
  limits: ThrottleLimits,
  signals: ThrottleSignals,
  holding: ReadonlySet<Measured>,
): Judgement {
  const now = new Set<Measured>()
  const reasons: string[] = []
  const unknown: string[] = []
  for (const name of measuredNames) {
    const limit = limits[name]
    if (limit === undefined) continue
    const { what } = measured[name]
    const reading = signals[name]
    const release = limit * (limits.release ?? 0.8)
    if (reading.unknown !== undefined) unknown.push(`${what}: ${reading.unknown}`)
    if (!holds(reading, limit, release, holding.has(name))) continue
    now.add(name)
    reasons.push(reasonOf(name, reading, limit, release))
  }
  if (limits.autovacuum === true) {
    const { tables, unknown: unseen } = signals.vacuumed
    if (unseen !== undefined) unknown.push(`vacuum: ${unseen}`)
    if (tables.length > 0) reasons.push(`vacuum works on ${tables.join(', ')}`)
  }
  return { holding: now, reasons, unknown }
}

function holds({ value, unknown }: Reading, limit: number, release: number, held: boolean): boolean {
  if (value !== undefined && value > limit) return true
  return held && (unknown !== undefined || value === undefined || value > release)
}

function reasonOf(name: Measured, { value, detail }: Reading, limit: number, release: number): string {
  const { what, show } = measured[name]
  const whose = detail === undefined ? '' : ` (${detail})`
  if (value === undefined) return `${what} not known any more, limit ${show(limit)}`
  const text = `${what} ${show(value)}${whose}, limit ${show(limit)}`
  if (value > limit) return text
  return value > release ? `${text}, goes on at ${show(release)}` : `${text}, but not all of it is known`
}

function decimal(value: number): string {
  return value.toLocaleString('en', { maximumFractionDigits: 1, useGrouping: false })
}

function whole(value: number): string {
  return value.toLocaleString('en', { maximumFractionDigits: 1 })
}

export type Verdict = {
  /** why the batch has to hold; undefined: it may go on */
  hold: string | undefined
  /** what could not be judged, and why: for the log. A failed read stands here as well */
  unknown: readonly string[]
}

export type ThrottleSettings = {
  limits: ThrottleLimits
  clock: Clock
  read: () => Promise<ThrottleSignals>
  /** how long a read, or the hook, may take before it counts as failed; milliseconds; default 5000 */
  answerMs?: number
  /** how many failures in a row are let pass; default 3 */
  patience?: number
}

/**
 * Says before each chunk whether to hold, at the cost of one read every `everyMs`.
 *
 * A read fails mostly because the database is busy, which is when it matters. One failure proves nothing, and a batch that
 * held at each would crawl; a batch that never did would run blind for as long as it lasts. So the last verdict stays,
 * with the error beside it in `unknown`, for `patience` failures in a row; from the next one the batch holds with the
 * error as the reason. It is never ended by that: the first read that succeeds decides again. The hook, which may fail
 * apart from the database, is counted apart.
 */
export class Throttle {
  readonly #settings: ThrottleSettings
  readonly #signals: Source<ThrottleSignals> | undefined
  readonly #hook: Source<string | undefined> | undefined
  #holding: ReadonlySet<Measured> = new Set()
  #readAt: number | undefined
  #verdict: Verdict = { hold: undefined, unknown: [] }
  #judging: Promise<void> | undefined

  /** Throws InvalidConfigError with all that is wrong with the limits. */
  constructor(settings: ThrottleSettings) {
    checkThrottleLimits(settings.limits)
    this.#settings = settings
    const { limits, clock, read, answerMs = 5_000, patience = 3 } = settings
    const source = <T>(what: string, ask: (signal: AbortSignal) => Promise<T>) =>
      new Source(what, ask, { clock, answerMs, patience })
    if (readsSignals(limits)) this.#signals = source('the throttle signals', read)
    if (limits.hook) this.#hook = source('the throttle hook', limits.hook)
  }

  /** The verdict of now, or of at most `everyMs` ago. When the signal aborts meanwhile, the last one. Never rejects. */
  async check(signal: AbortSignal): Promise<Verdict> {
    if (this.#isDue() && !signal.aborted) {
      // Several ask at once: one read answers all.
      this.#judging ??= this.#judge(signal).finally(() => {
        this.#judging = undefined
      })
      await this.#judging
    }
    return this.#verdict
  }

  #isDue(): boolean {
    if (this.#readAt === undefined) return true
    const passed = this.#settings.clock.now() - this.#readAt
    // The system's clock may have been set back.
    return passed < 0 || passed >= (this.#settings.limits.everyMs ?? 1_000)
  }

  async #judge(signal: AbortSignal): Promise<void> {
    const { limits, clock } = this.#settings
    await Promise.all([this.#signals?.ask(signal), this.#hook?.ask(signal)])
    if (signal.aborted) return
    // From the end: a slow server is not to be asked without a pause.
    this.#readAt = clock.now()
    const reasons: string[] = []
    const unknown: string[] = []
    const signals = this.#signals?.answer
    if (signals) {
      const judged = judge(limits, signals.value, this.#holding)
      this.#holding = judged.holding
      reasons.push(...judged.reasons)
      unknown.push(...judged.unknown)
    }
    const reason = this.#hook?.answer?.value
    if (reason) reasons.push(reason)
    for (const source of [this.#signals, this.#hook]) {
      if (source?.failure === undefined) continue
      unknown.push(source.failure)
      if (source.outOfPatience) reasons.push(source.failure)
    }
    this.#verdict = { hold: reasons.length > 0 ? reasons.join('; ') : undefined, unknown }
  }
}

/** Something that is asked again and again and may fail or be late; keeps the last answer. */
class Source<T> {
  answer: { value: T } | undefined
  /** of the last time; undefined: it answered */
  failure: string | undefined
  readonly #what: string
  readonly #ask: (signal: AbortSignal) => Promise<T>
  readonly #limits: { clock: Clock; answerMs: number; patience: number }
  #failures = 0
  #asked: Promise<T> | undefined

  constructor(
    what: string,
    ask: (signal: AbortSignal) => Promise<T>,
    limits: { clock: Clock; answerMs: number; patience: number },
  ) {
    this.#what = what
    this.#ask = ask
    this.#limits = limits
  }

  get outOfPatience(): boolean {
    return this.#failures > this.#limits.patience
  }

  /** Never rejects. */
  async ask(signal: AbortSignal): Promise<void> {
    try {
      this.answer = { value: await this.#answerInTime(signal) }
      this.failure = undefined
      this.#failures = 0
    } catch (error) {
      if (signal.aborted) return
      this.#failures++
      this.failure = `${this.#what} could not be read: ${messageOf(error)}`
    }
  }

  /** One that is late is not asked a second time beside the first: that would pile up on a server that is busy. */
  async #answerInTime(signal: AbortSignal): Promise<T> {
    const { clock, answerMs } = this.#limits
    const over = new AbortController()
    const ended = AbortSignal.any([signal, over.signal])
    const late = deferred<never>()
    try {
      this.#asked ??= this.#start(ended)
      void clock.pause(answerMs, ended).then(() => late.reject(new Error(`no answer within ${answerMs} ms`)))
      return await Promise.race([this.#asked, late.promise])
    } finally {
      over.abort()
    }
  }

  async #start(signal: AbortSignal): Promise<T> {
    try {
      return await this.#ask(signal)
    } finally {
      this.#asked = undefined
    }
  }
}
