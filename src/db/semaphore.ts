/** At most so many at once, first come first served. How many may change: when it shrinks, what runs goes on. */
export class Semaphore {
  #permits: number
  #used = 0
  readonly #waiting = new Set<() => void>()

  constructor(permits: number) {
    this.#permits = permits
  }

  get permits(): number {
    return this.#permits
  }

  get used(): number {
    return this.#used
  }

  resize(permits: number): void {
    this.#permits = permits
    this.#admit()
  }

  /** Waits for its turn, with `patience` at most so long, and rejects with its error then. Who has entered has to leave, once. */
  async enter(patience?: Patience): Promise<void> {
    // Whoever leaves lets the next one in, so a free permit means that nobody waits.
    if (this.#used < this.#permits) this.#used++
    else await this.#turn(patience)
  }

  leave(): void {
    this.#used--
    this.#admit()
  }

  #turn(patience: Patience | undefined): Promise<void> {
    return new Promise((resolve, reject) => {
      const timer =
        patience &&
        setTimeout(() => {
          this.#waiting.delete(admit)
          reject(patience.error())
        }, patience.ms)
      const admit = () => {
        clearTimeout(timer)
        resolve()
      }
      this.#waiting.add(admit)
    })
  }

  #admit(): void {
    for (const admit of this.#waiting) {
      if (this.#used >= this.#permits) return
      this.#used++
      this.#waiting.delete(admit)
      admit()
    }
  }
}

/** How long somebody waits, in milliseconds, and what is told then. */
export type Patience = { ms: number; error: () => Error }
