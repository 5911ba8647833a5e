import { NoSlotsError } from '../db/errors.ts'
import { Semaphore } from '../db/semaphore.ts'

/**
 * This process's share of the slots for prepared transactions, in attempts. It changes with each heartbeat; when it
 * shrinks, what runs goes on and the next ones wait. Waiting too long is back-pressure, never a failed job.
 */
export class Slots {
  readonly #semaphore = new Semaphore(0)

  get granted(): number {
    return this.#semaphore.permits
  }

  get used(): number {
    return this.#semaphore.used
  }

  grant(slots: number): void {
    this.#semaphore.resize(slots)
  }

  /** Takes a slot; throws NoSlotsError when none becomes free in `patienceMs`. Call what it returns once, to give it back. */
  async take(patienceMs = 10_000): Promise<() => void> {
    await this.#semaphore.enter({
      ms: patienceMs,
      error: () =>
        new NoSlotsError(
          `this process may have ${this.granted} transactions prepared at once, and they are all taken; try again later. \`holdfast tx list\` shows what is prepared; a process asks for what \`connections.distributed\` and its queues need, and max_prepared_transactions is the limit of all (a restart changes it)`,
        ),
    })
    let given = false
    return () => {
      if (!given) this.#semaphore.leave()
      given = true
    }
  }

  async use<T>(act: () => Promise<T>): Promise<T> {
    const release = await this.take()
    try {
      return await act()
    } finally {
      release()
    }
  }
}
