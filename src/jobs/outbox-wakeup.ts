import type { Logger } from 'pino'
import type { Participant } from '../db/databases.ts'

const channel = 'holdfast_outbox'

/** At most this often from one process, and at once when it was quiet. */
const gapMs = 5

/** How long one commit of many waits for others. */
const manyMs = 50

/**
 * Tells the relays of all processes that something was committed. NOTIFY cannot be part of a prepared transaction, so it
 * is sent after the commit, debounced; it may be lost, polling is the floor.
 */
export class OutboxWakeup {
  readonly #database: Participant
  readonly #log: Logger
  #timer: NodeJS.Timeout | undefined
  #again = false
  #many: NodeJS.Timeout | undefined

  constructor(database: Participant, log: Logger) {
    this.#database = database
    this.#log = log
  }

  committed(): void {
    if (this.#timer) {
      this.#again = true
      return
    }
    this.#again = false
    this.#timer = setTimeout(() => {
      this.#timer = undefined
      if (this.#again) this.committed()
    }, gapMs)
    this.#timer.unref()
    this.#database.sql`select pg_notify(${channel}, '')`.catch((err: unknown) => {
      this.#log.debug({ err }, 'no wake-up sent; the relays look by themselves')
    })
  }

  /** Of a chunk among others: one wake-up each would cost them time, and most have published nothing. */
  committedOneOfMany(): void {
    if (this.#many) return
    this.#many = setTimeout(() => {
      this.#many = undefined
      this.committed()
    }, manyMs)
    this.#many.unref()
  }

  /** Calls back at each wake-up, and after a lost connection; returns how to stop. */
  listen(onWakeup: () => void): Promise<() => Promise<void>> {
    return this.#database.listen(channel, onWakeup)
  }
}
