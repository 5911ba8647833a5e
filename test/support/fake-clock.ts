import { deferred } from '../../src/db/deferred.ts'
import type { Clock } from '../../src/jobs/clock.ts'

/** Time that passes only when the test lets it. */
export class FakeClock implements Clock {
  #now = 0
  readonly #pauses = new Set<{ until: number; end(): void }>()

  now(): number {
    return this.#now
  }

  async pause(ms: number, signal: AbortSignal): Promise<void> {
    if (signal.aborted) return
    const over = deferred<void>()
    const pause = { until: this.#now + ms, end: () => over.resolve() }
    this.#pauses.add(pause)
    signal.addEventListener('abort', pause.end, { once: true })
    await over.promise
    signal.removeEventListener('abort', pause.end)
    this.#pauses.delete(pause)
  }

  /** How long each of those that wait has still to wait. */
  get waits(): number[] {
    return [...this.#pauses].map(({ until }) => until - this.#now)
  }

  /** Lets time pass, and those whose time it was go on as far as they get without more of it. */
  async advance(ms: number): Promise<void> {
    this.#now += ms
    for (const pause of this.#pauses) if (pause.until <= this.#now) pause.end()
    await settle()
  }
}

/** Time that jumps to the end of each pause as soon as somebody pauses. */
export class JumpingClock implements Clock {
  #now = 0

  now(): number {
    return this.#now
  }

  async pause(ms: number, signal: AbortSignal): Promise<void> {
    const until = this.#now + ms
    await settle()
    if (!signal.aborted) this.#now = Math.max(this.#now, until)
  }
}

/** All that can go on without time, input or output has gone on. */
export function settle(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve))
}
