import { type Deferred, deferred } from '../db/deferred.ts'
import { SinkUnavailableError } from '../db/errors.ts'
import type { Clock } from './clock.ts'
import { untilAborted } from './until-aborted.ts'

/**
 * The circuit breaker of one sink in this process, shared by its shards. Open, nobody tries; after a back-off one of them
 * does (half open), and what becomes of it decides for all. A sink that is away charges no event an attempt.
 *
 * Back-off: twice as long each time, from `firstMs` to `maxMs`, with full jitter; what the sink asked for (Retry-After)
 * is waited for in full.
 */
export type CircuitSettings = {
  clock: Clock
  firstMs: number
  maxMs: number
  /** 0 to 1 */
  random?: () => number
  /** called when it opens (with the error), fails again, or closes */
  onChange?: (state: 'open' | 'closed', failures: number, error?: Error) => void
}

/** Leave to try. `probe`: it was given while the circuit was open, and what becomes of it decides for all. */
export type Leave = { readonly probe: boolean }

export class Circuit {
  readonly #settings: CircuitSettings
  #failures = 0
  #openUntil = 0
  /** settled when the probe under way has an answer */
  #probe: { leave: Leave; answered: Deferred<void> } | undefined

  constructor(settings: CircuitSettings) {
    this.#settings = settings
  }

  get open(): boolean {
    return this.#failures > 0
  }

  /** Waits until the caller may try, or the signal aborts. Whoever passed says then what became of it. */
  async pass(signal: AbortSignal): Promise<Leave> {
    const { clock } = this.#settings
    while (this.open && !signal.aborted) {
      const waitMs = this.#openUntil - clock.now()
      if (waitMs > 0) {
        await clock.pause(waitMs, signal)
      } else if (this.#probe) {
        await untilAborted(this.#probe.answered.promise, signal)
      } else {
        this.#probe = { leave: { probe: true }, answered: deferred() }
        return this.#probe.leave
      }
    }
    return { probe: false }
  }

  /** The sink took something just now. */
  succeeded(): void {
    const wasOpen = this.open
    this.#failures = 0
    this.#answered()
    if (wasOpen) this.#settings.onChange?.('closed', 0)
  }

  failed(error: Error, leave: Leave): void {
    const { clock, firstMs, maxMs, random = Math.random } = this.#settings
    // Those that were on their way when it opened say nothing new, and nothing of the probe.
    if (this.open && this.#probe?.leave !== leave) return
    this.#failures++
    const backOffMs = random() * Math.min(maxMs, firstMs * 2 ** this.#failures)
    const askedMs = error instanceof SinkUnavailableError ? (error.retryAfterMs ?? 0) : 0
    this.#openUntil = clock.now() + Math.max(backOffMs, askedMs)
    this.#answered()
    this.#settings.onChange?.('open', this.#failures, error)
  }

  /** Whoever passed went away without an answer; another one may try. */
  left(leave: Leave): void {
    if (this.#probe?.leave === leave) this.#answered()
  }

  #answered(): void {
    this.#probe?.answered.resolve()
    this.#probe = undefined
  }
}
