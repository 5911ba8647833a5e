import { FencedError, RestoredDatabaseError } from '../db/errors.ts'
import {
  type Cursor,
  endEpoch,
  ensureCursor,
  type Position,
  type Present,
  readPosition,
  readPresent,
  startEpoch,
  startParkedEpoch,
  startReplay,
  thinPositions,
} from '../db/outbox-cursors.ts'
import { epochText, findEvents, findOther, readEpoch, wasRestored } from '../db/outbox-epochs.ts'
import type { OutboxEvent } from '../db/outbox-event.ts'
import { readHeldInEpoch, readHeldKeys } from '../db/outbox-parked.ts'
import { isContention, SQLSTATE, sqlstateOf } from '../db/sqlstate.ts'
import { reached } from '../db/steps.ts'
import { ownerOf } from '../db/transaction-name.ts'
import { liveOwners } from '../db/workers.ts'
import type { JobContext } from './context.ts'
import { findInDoubt } from './listing.ts'
import { resolveUnrecorded } from './orphans.ts'
import { isPageOf, pageName } from './page-name.ts'
import { Outcomes } from './page-outcomes.ts'
import { PageRun, type PageSettings } from './page-run.ts'
import type { OpenSink, SinkPolicy } from './sinks/sink.ts'

/**
 * The relay of one (sink, shard): carries committed events from the outbox to the sink, in order.
 *
 * A cursor goes through epochs. An epoch is a fixed list: the events visible in its target snapshot and not in its
 * base (or parked events, a replay: see outbox-epochs). It is committed before anything of the list is published; when the
 * list is at its end, target becomes the next base. A page of the list is one staged transaction: lock the cursor, append
 * the new position, PREPARE; publish; COMMIT PREPARED.
 *
 * The races, and what closes them:
 * 1. Killed between PREPARE and COMMIT PREPARED: the page is in doubt and holds the cursor's lock. The next relay
 *    resolves it before it does anything: not committed in the target of a table sink means rolled back, and the page
 *    is published again from the same position; the sink's memory skips what it took.
 * 2. Two relays (BullMQ delivers twice when a lock is lost). The later one leaves a page of a live process alone and
 *    steps back; between pages the cursor's lock orders them, and the one whose position is stale is refused (HF001).
 * 3. A relay that lost its lease while publishing (zombie). Its page was rolled back, its COMMIT PREPARED finds no gid;
 *    its publish carries a lower xid than its successor's and is refused by sinks that remember.
 * 4. A PREPARE that arrives after the next relay looked: it waits for the cursor's lock, then its position is stale.
 * 5. An operator redrives, discards or rebases meanwhile: that takes the cursor's lock and moves it, so what this relay
 *    knows of parked keys is never acted on; it steps back, and the next one reads them again.
 */
export type RelayOptions = Cursor & {
  pageSize: number
  /** default all */
  wants?: (event: OutboxEvent) => boolean
  policy?: SinkPolicy
  /** bytes of an event as CloudEvent; larger ones are dead at once */
  maxEventBytes?: number
}

/** `stepped-back`: another live process runs this cursor, or moved it. */
export type Drained = { published: number; outcome: 'idle' | 'stepped-back' | 'stopped' }

/** A cursor at the end of its list. `base` is as far as it was looked, ahead of the stored one. */
export type Idle = Cursor & { base: string; sequence: bigint; floor: bigint }

/** What there is for an idle cursor; other: a replay that waits, or parked events that are due. */
export type Found = 'events' | 'other'

/**
 * Waits until there is something for an idle cursor, or until the relay is to stop (undefined); moves its base on while
 * there is not. `published`: how much this drain has published so far.
 */
export type WaitForMore = (idle: Idle, published: number) => Promise<Found | undefined>

export class Relay {
  readonly #ctx: JobContext
  readonly #options: RelayOptions
  readonly #cursor: Cursor
  readonly #settings: PageSettings
  /** A base ahead of the stored one: a poll that found nothing moves it in memory only. Holds for that position alone. */
  #idle: (Idle & { no: bigint }) | undefined
  readonly #shown = new Outcomes()

  constructor(ctx: JobContext, sink: OpenSink, options: RelayOptions) {
    const { sink: name, shard, policy, maxEventBytes } = options
    this.#ctx = ctx
    this.#options = options
    this.#cursor = { sink: name, shard }
    this.#settings = {
      cursor: this.#cursor,
      sink,
      policy: { onReject: 'park', maxAttempts: 10, afterDead: 'wait', ...policy },
      name: pageName(name, shard, sink.target),
      maxBytes: maxEventBytes,
    }
  }

  /**
   * Publishes until nothing is left, or goes on when `more` says that there is. Throws SinkUnavailableError when the sink
   * takes nothing (nothing is lost: the page was rolled back), RejectedEventError when the policy is to wait for a rejected
   * event, RestoredDatabaseError, and what the database throws.
   */
  async drain(signal: AbortSignal, more?: WaitForMore): Promise<Drained> {
    const { primary } = this.#ctx.databases
    await this.#ctx.lease.hold()
    await ensureCursor(primary, this.#cursor)
    if (!(await this.#resolveInDoubt())) return { published: 0, outcome: 'stepped-back' }
    const done = { published: 0 }
    try {
      let position = await readPosition(primary.sql, this.#cursor)
      if (await wasRestored(primary.sql, this.#cursor, position)) throw restored(this.#cursor)
      // Somebody may have left it in the middle of a list.
      if (!signal.aborted) position = await this.#publishEpoch(position, done, signal)
      let found: Found | undefined
      while (!signal.aborted) {
        const next = await this.#nextEpoch(position, found)
        found = undefined
        if (next) position = await this.#publishEpoch(next, done, signal)
        else if (more && this.#idle) found = await more(this.#idle, done.published)
        else return { ...done, outcome: 'idle' }
      }
      return { ...done, outcome: 'stopped' }
    } catch (error) {
      this.#idle = undefined
      // A page that was not published must not stay prepared while the sink is down: it pins the vacuum horizon.
      await this.#resolveInDoubt().catch((err: unknown) =>
        this.#ctx.log.warn({ err, ...this.#cursor }, 'page left in doubt'),
      )
      if (error instanceof RestoredDatabaseError) this.#alertRestored(error)
      if (!isOvertaken(error)) throw error
      this.#ctx.log.info({ err: error, ...this.#cursor }, 'another relay moved the cursor; stepping back')
      return { ...done, outcome: 'stepped-back' }
    }
  }

  #alertRestored({ message }: RestoredDatabaseError): void {
    this.#ctx.alerts.raise({ kind: 'outbox_restored', subject: this.#cursor.sink, message })
  }

  /** False when a live process holds a page of this cursor. */
  async #resolveInDoubt(): Promise<boolean> {
    const { primary } = this.#ctx.databases
    const { sink, shard } = this.#cursor
    const pages = await findInDoubt(this.#ctx, primary, (parts) => isPageOf(parts, sink, shard))
    const owners = pages.map((page) => ownerOf(page.parts.attempt))
    const live = await liveOwners(primary.sql, owners)
    live.delete(this.#ctx.lease.id)
    if (live.size > 0) return false
    for (const page of pages) {
      const outcome = await resolveUnrecorded(this.#ctx, page)
      this.#ctx.log.info(
        { page: this.#settings.name, attempt: page.parts.attempt, outcome },
        'resolved an outbox page in doubt',
      )
    }
    return true
  }

  /**
   * Whether there is anything to publish: then the epoch of it, otherwise the base moves on in memory. `found`: what is
   * known already.
   */
  async #nextEpoch(at: Position, found: Found | undefined): Promise<Position | undefined> {
    const { primary } = this.#ctx.databases
    if (at.kind !== 'events') {
      await endEpoch(primary, this.#cursor, at)
    } else if (!(await this.#startOther(at, found)) && !(await this.#startEvents(at, found))) {
      return undefined
    }
    this.#idle = undefined
    await reached('epoch.started')
    return readPosition(primary.sql, this.#cursor)
  }

  async #startOther(at: Position, found: Found | undefined): Promise<boolean> {
    const { primary } = this.#ctx.databases
    if (found === 'events' || !(found === 'other' || (await this.#otherWaits()))) return false
    return (
      (await startParkedEpoch(primary, this.#cursor, at)) || (await startReplay(primary, this.#cursor, at))
    )
  }

  async #otherWaits(): Promise<boolean> {
    const { sink, shard } = this.#cursor
    const waiting = await findOther(this.#ctx.databases.primary.sql, [sink])
    return waiting.some((cursor) => cursor.shard === shard)
  }

  async #startEvents(at: Position, found: Found | undefined): Promise<boolean> {
    const { primary } = this.#ctx.databases
    const base = this.#idle?.no === at.no ? this.#idle : idleAt(this.#cursor, at)
    if (found !== 'events') {
      const present: Present = await readPresent(primary.sql)
      if ((await findEvents(primary.sql, [base], present)).size === 0) {
        this.#idle = { ...base, no: at.no, base: present.snapshot, sequence: present.sequence }
        return false
      }
    }
    await startEpoch(primary, this.#cursor, at, { snapshot: base.base, sequence: base.sequence })
    return true
  }

  async #publishEpoch(from: Position, done: { published: number }, signal: AbortSignal): Promise<Position> {
    const { pageSize, wants } = this.#options
    const { primary } = this.#ctx.databases
    if (from.kind === 'events' && from.base === from.target) return from
    const held = await this.#heldKeys(from)
    const list = await epochText(primary.sql, this.#cursor, from)
    const pages = new PageRun(this.#ctx, this.#settings, from, held, this.#shown)
    const release = await this.#ctx.lease.slots.take()
    try {
      await readEpoch(primary, list, pageSize, {
        // The next page is read and encoded while the one before it is at the sink.
        arrived: (all) => {
          const events = from.kind === 'parked' || !wants ? all : all.filter(wants)
          return {
            events,
            encoded: this.#settings.sink.encode?.(events),
            lastId: BigInt(all.at(-1)?.id ?? 0),
          }
        },
        handle: async (page, readAhead) => {
          if (signal.aborted) return 'stop'
          if (page.events.length === 0) await pages.skip(page.lastId)
          else if ((await pages.publish(page, readAhead, signal)) === 'stopped') return 'stop'
          return 'next'
        },
      })
      await pages.finish()
    } catch (error) {
      // What the sink has taken is committed, whatever became of the reading: nobody is sent it again.
      await pages
        .finish()
        .catch((err: unknown) => this.#ctx.log.debug({ err, ...this.#cursor }, 'page in doubt'))
      throw error
    } finally {
      done.published += pages.published
      this.#ctx.telemetry.outbox.published(this.#cursor, pages.published)
      this.#ctx.telemetry.outbox.rejected(this.#cursor, pages.rejected)
      release()
      await pages.close()
    }
    await thinPositions(primary.sql, this.#cursor, pages.position.no)
    return pages.position
  }

  /** Read after the position: whatever changed them since moved the cursor, and then nothing can be staged. */
  #heldKeys({ kind, epoch, lastId }: Position): Promise<Set<string>> {
    const { sql } = this.#ctx.databases.primary
    if (kind !== 'parked') return readHeldKeys(sql, this.#cursor)
    return readHeldInEpoch(sql, this.#cursor, epoch, lastId)
  }
}

function idleAt(cursor: Cursor, { no, target, targetSequence, floor }: Position): Idle & { no: bigint } {
  return { ...cursor, no, base: target, sequence: targetSequence, floor }
}

function restored({ sink, shard }: Cursor): RestoredDatabaseError {
  return new RestoredDatabaseError(
    `the database went back in time (restored from a dump?): what the outbox cursor ${sink}/${shard} knows says nothing about its present transactions. Nothing is published until \`holdfast outbox rebase ${sink}\` (docs/operations.md)`,
  )
}

function isOvertaken(error: unknown): boolean {
  const state = sqlstateOf(error)
  return (
    error instanceof FencedError ||
    state === SQLSTATE.fenced ||
    state === SQLSTATE.undefinedObject ||
    isContention(error)
  )
}
