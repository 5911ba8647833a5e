import { NoSlotsError } from '../db/errors.ts'

/**
 * This process's share of the slots for prepared transactions, in attempts. It changes with each heartbeat; when it
 * shrinks, what runs goes on and the next ones wait. Waiting too long is back-pressure, never a failed job.
 */
export class Slots {
  #granted = 0
  #used = 0
  readonly #waiting = new Set<() => void>()

  get granted(): number {
    return this.#granted
  }

  get used(): number {
    return this.#used
  }

  grant(slots: number): void {
    this.#granted = slots
    this.#admit()
  }

  /** Takes a slot; throws NoSlotsError when none becomes free in `patienceMs`. Call what it returns once, to give it back. */
  async take(patienceMs = 10_000): Promise<() => void> {
    if (this.#used >= this.#granted) await this.#turn(patienceMs)
    else this.#used++
    let given = false
    return () => {
      if (given) return
      given = true
      this.#used--
      this.#admit()
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

  #turn(patienceMs: number): Promise<void> {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#waiting.delete(enter)
        reject(
          new NoSlotsError(
            `this process may have ${this.#granted} transactions prepared at once, and they are all taken; try again later. \`holdfast tx list\` shows what is prepared; max_prepared_transactions is the limit of all (a restart changes it)`,
          ),
        )
      }, patienceMs)
      const enter = () => {
        clearTimeout(timer)
        resolve()
      }
      this.#waiting.add(enter)
    })
  }

  #admit(): void {
    for (const enter of this.#waiting) {
      if (this.#used >= this.#granted) return
      this.#used++
      this.#waiting.delete(enter)
      enter()
    }
  }
}
