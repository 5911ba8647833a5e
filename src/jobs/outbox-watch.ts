import type { Sql } from '../db/databases.ts'
import { type Deferred, deferred } from '../db/deferred.ts'
import { readPresent } from '../db/outbox-cursors.ts'
import { findEvents, findOther } from '../db/outbox-epochs.ts'
import { within } from '../db/within.ts'
import type { Found, Idle } from './publish-outbox.ts'
import { untilAborted } from './until-aborted.ts'

/** A look that takes longer has lost its connection, or the database is in trouble: the relays back off. */
const lookMs = 10_000

/**
 * Looks for all idle cursors of this process at once: on a wake-up, and every `pollMs` anyhow, which is all there is for
 * other languages, for commits by recovery, and where notifications do not come through. An idle look writes nothing.
 *
 * Wake-ups are level-triggered: one that comes while a look is under way leads to another look, since that one may have
 * taken its snapshot before. So does one that came after a relay's own look and before it waits here: `wakes` tells.
 */
export class OutboxWatch {
  readonly #sql: Sql
  readonly #pollMs: number
  readonly #waiting = new Map<Idle, Deferred<Found>>()
  #looking: Promise<void> | undefined
  #again = false
  #wakes = 0
  #timer: NodeJS.Timeout | undefined

  constructor(sql: Sql, pollMs: number) {
    this.#sql = sql
    this.#pollMs = pollMs
  }

  /** How many wake-ups came so far. */
  get wakes(): number {
    return this.#wakes
  }

  /** Something was committed. */
  wake(): void {
    this.#wakes++
    if (this.#waiting.size > 0) this.#lookSoon()
  }

  /**
   * Until there is something for this cursor, or the signal aborts (undefined). Rejects with what the database throws. `seen`: what
   * `wakes` was before the caller looked itself.
   */
  async wait(idle: Idle, signal: AbortSignal, seen: number): Promise<Found | undefined> {
    const found = deferred<Found>()
    this.#waiting.set(idle, found)
    if (seen !== this.#wakes) this.#lookSoon()
    else if (!this.#looking) this.#timer ??= setTimeout(() => this.#look(), this.#pollMs)
    try {
      return await untilAborted(found.promise, signal)
    } finally {
      this.#waiting.delete(idle)
    }
  }

  #lookSoon(): void {
    if (this.#looking) this.#again = true
    else this.#look()
  }

  #look(): void {
    clearTimeout(this.#timer)
    this.#timer = undefined
    this.#again = false
    const looking = within(lookMs, 'looking for events', this.#lookOnce()).catch((error: unknown) => {
      for (const found of this.#waiting.values()) found.reject(toError(error))
    })
    this.#looking = looking.then(() => {
      this.#looking = undefined
      if (this.#waiting.size === 0) return
      if (this.#again) this.#look()
      else this.#timer ??= setTimeout(() => this.#look(), this.#pollMs)
    })
  }

  async #lookOnce(): Promise<void> {
    const waiting = [...this.#waiting.keys()]
    if (waiting.length === 0) return
    const sinks = [...new Set(waiting.map(({ sink }) => sink))]
    const [present, other] = await Promise.all([readPresent(this.#sql), findOther(this.#sql, sinks)])
    const found = await findEvents(this.#sql, waiting, present)
    for (const idle of waiting) {
      if (other.some(({ sink, shard }) => sink === idle.sink && shard === idle.shard)) {
        this.#waiting.get(idle)?.resolve('other')
      } else if (found.has(idle)) {
        this.#waiting.get(idle)?.resolve('events')
      } else {
        idle.base = present.snapshot
        idle.sequence = present.sequence
      }
    }
  }
}

function toError(error: unknown): Error {
  return error instanceof Error ? error : new Error(String(error))
}
