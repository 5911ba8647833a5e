import type { Logger } from 'pino'
import type { Participant } from '../db/databases.ts'
import { type Claim, renewClaim } from '../db/idempotency-keys.ts'
import { longestTimerMs } from './pause.ts'

/**
 * Keeps the lease of a claim while its work runs, renewed three times within its duration: work that is shorter than a
 * third of it costs nothing. The signal aborts when the claim is lost: somebody took it over, or the lease ran out, by this
 * process's clock from before it was asked for, and somebody may.
 */
export class ClaimLease {
  readonly #primary: Participant
  readonly #claim: Claim
  readonly #leaseMs: number
  readonly #log: Logger
  readonly #lost = new AbortController()
  readonly #timer: NodeJS.Timeout
  #heldUntil: number
  #renewing = false

  constructor(primary: Participant, claim: Claim, leaseMs: number, claimedFrom: number, log: Logger) {
    this.#primary = primary
    this.#claim = claim
    this.#leaseMs = leaseMs
    this.#log = log
    this.#heldUntil = claimedFrom + leaseMs
    this.#timer = setInterval(
      () => {
        if (performance.now() >= this.#heldUntil) this.#lose()
        else void this.#renew()
      },
      Math.min(leaseMs / 3, longestTimerMs),
    )
    // The work keeps the process alive, or nothing does.
    this.#timer.unref()
  }

  get signal(): AbortSignal {
    return this.#lost.signal
  }

  end(): void {
    clearInterval(this.#timer)
  }

  /** One at a time: a renewal that hangs does not hold up the look at the clock. */
  async #renew(): Promise<void> {
    if (this.#renewing) return
    this.#renewing = true
    const from = performance.now()
    try {
      if (await renewClaim(this.#primary, this.#claim, this.#leaseMs)) this.#heldUntil = from + this.#leaseMs
      else this.#lose()
    } catch (err) {
      this.#log.warn({ err }, 'the lease of an idempotency key could not be renewed')
    } finally {
      this.#renewing = false
    }
  }

  #lose(): void {
    this.end()
    this.#lost.abort(new Error('the claim on the idempotency key was lost'))
  }
}
