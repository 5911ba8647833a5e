import type { Logger } from 'pino'

/** Runs something again and again, never twice at once. A failed round is logged; the next one comes all the same. */
export class Loop {
  readonly #name: string
  readonly #everyMs: number
  readonly #round: () => Promise<void>
  readonly #log: Logger
  #timer: NodeJS.Timeout | undefined
  #running: Promise<void> = Promise.resolve()
  #stopped = false

  constructor(name: string, everyMs: number, round: () => Promise<void>, log: Logger) {
    this.#name = name
    this.#everyMs = everyMs
    this.#round = round
    this.#log = log
  }

  start(): void {
    if (this.#stopped) return
    this.#timer = setTimeout(() => {
      this.#running = this.#round()
        .catch((error: unknown) => this.#log.warn({ err: error, loop: this.#name }, 'a round failed'))
        .finally(() => this.start())
    }, this.#everyMs)
  }

  /** Stops, and waits for the round that is running. */
  async stop(): Promise<void> {
    this.#stopped = true
    clearTimeout(this.#timer)
    await this.#running
  }
}
