import type { Logger } from 'pino'
import type { Sql } from '../db/databases.ts'
import type { SlotBudget } from '../db/servers.ts'
import { newOwnerId } from '../db/transaction-name.ts'
import type { WorkerKind } from '../db/workers.ts'
import { endLease, renewLease } from '../db/workers.ts'
import { Slots } from './slots.ts'

/**
 * The lease of this process. Everything that it stages carries its id, and recovery leaves it alone while the lease
 * lives. The lease is taken when first needed and renewed three times within its duration.
 */
export class OwnerLease {
  readonly id = newOwnerId()
  /** attempts that this process is staging or running just now; an undecided one of ours that is not here was given up */
  readonly running = new Set<string>()
  readonly slots = new Slots()
  readonly #sql: Sql
  readonly #kind: WorkerKind
  readonly #leaseMs: number
  readonly #wants: number
  readonly #budget: SlotBudget
  readonly #log: Logger
  readonly #onLost = new Set<() => void>()
  #timer: NodeJS.Timeout | undefined
  /** by this process's clock, from before the renewal was sent */
  #heldUntil = 0
  #taking: Promise<void> | undefined
  #renewing: Promise<void> | undefined

  constructor(options: {
    sql: Sql
    kind: WorkerKind
    leaseMs: number
    /** how many attempts this process would like to have prepared at once, and how many all processes may have */
    wants: number
    budget: SlotBudget
    log: Logger
  }) {
    this.#sql = options.sql
    this.#kind = options.kind
    this.#leaseMs = options.leaseMs
    this.#wants = options.wants
    this.#budget = options.budget
    this.#log = options.log
  }

  /** Takes the lease unless it is held, also when it ran out meanwhile (a stopped process); throws when the coordinator database cannot be reached. */
  async hold(): Promise<void> {
    if (this.#timer && performance.now() < this.#heldUntil) return
    // Whoever else asks waits for this statement: a second one would come late, after what this one began. A renewal is
    // waited for by nobody: it may be one that was sent before a long stop, or that nobody answers.
    this.#taking ??= this.#take().finally(() => {
      this.#taking = undefined
    })
    await this.#taking
    this.#timer ??= setInterval(() => this.#renew(), this.#leaseMs / 3)
    // A producer's process may end whenever its own work is done.
    this.#timer.unref()
  }

  async end(): Promise<void> {
    await this.#taking?.catch(() => undefined)
    if (!this.#timer) return
    clearInterval(this.#timer)
    this.#timer = undefined
    await this.#renewing
    await endLease(this.#sql, this.id)
  }

  async #take(): Promise<void> {
    const from = performance.now()
    const lease = {
      id: this.id,
      kind: this.#kind,
      leaseMs: this.#leaseMs,
      wants: this.#wants,
      budget: this.#budget,
    }
    const granted = await renewLease(this.#sql, lease)
    // An answer that comes after that to a later question says nothing new.
    if (from + this.#leaseMs < this.#heldUntil) return
    this.slots.grant(granted)
    this.#heldUntil = from + this.#leaseMs
  }

  /** Calls back, once, when the lease runs out unrenewed: others may take over what runs here. Returns how to stop it. */
  onLost(callback: () => void): () => void {
    this.#onLost.add(callback)
    return () => this.#onLost.delete(callback)
  }

  /** Repeats what failed for want of a database, for as long as the lease is kept; ten seconds apart at the most. */
  retry(act: () => Promise<void>, waitMs = 200): void {
    if (!this.#timer) return
    setTimeout(() => {
      act().catch(() => this.retry(act, Math.min(2 * waitMs, 10_000)))
    }, waitMs).unref()
  }

  #renew(): void {
    this.#renewing ??= this.#take()
      .catch((error: unknown) => {
        this.#log.warn({ err: error }, 'the lease could not be renewed')
        if (performance.now() < this.#heldUntil) return
        for (const lost of this.#onLost) lost()
        this.#onLost.clear()
      })
      .finally(() => {
        this.#renewing = undefined
      })
  }
}
