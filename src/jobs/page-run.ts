import type { Connection } from '../db/connection.ts'
import {
  FencedError,
  HoldfastError,
  RejectedEventError,
  RestoredDatabaseError,
  SinkUnavailableError,
} from '../db/errors.ts'
import { bytesOver } from '../db/event-size.ts'
import { messageOf } from '../db/message-of.ts'
import { type Cursor, type Position, skipPage } from '../db/outbox-cursors.ts'
import type { OutboxEvent } from '../db/outbox-event.ts'
import { stagePage } from '../db/outbox-pages.ts'
import { parkText, rejectAgainText, unparkText } from '../db/outbox-parked.ts'
import { commitPrepared, rollbackPrepared } from '../db/prepared.ts'
import { isWatched, reached } from '../db/steps.ts'
import { formatGid, newAttempt } from '../db/transaction-name.ts'
import { within } from '../db/within.ts'
import type { JobContext } from './context.ts'
import type { Outcomes } from './page-outcomes.ts'
import { type Plan, planPage } from './page-plan.ts'
import type { OpenSink, Page, Published, SinkPolicy } from './sinks/sink.ts'

/**
 * How long a sink may take for a page. Then the page is rolled back, since a prepared page holds the vacuum horizon; what
 * the sink still does with it is as with a zombie.
 */
export const publishMs = 20_000

export type ReadPage = { events: readonly OutboxEvent[]; encoded: unknown; lastId: bigint }

export type PageSettings = {
  cursor: Cursor
  sink: OpenSink
  policy: Required<SinkPolicy>
  /** under which the pages are staged */
  name: string
  /** the largest event that the sink takes */
  maxBytes: number | undefined
}

/** The pages of one epoch, one after the other on one connection; a page's commit leaves with the next one's staging. */
export class PageRun {
  position: Position
  published = 0
  rejected = 0
  readonly #ctx: JobContext
  readonly #settings: PageSettings
  readonly #held: Set<string>
  readonly #shown: Outcomes
  #connection: Connection | undefined
  #clean = true
  /** published, its COMMIT PREPARED not sent yet */
  #open: { gid: string; lastId: bigint; attempt: string } | undefined

  /** `held`: the keys of which an earlier event waits; this run adds to it. */
  constructor(
    ctx: JobContext,
    settings: PageSettings,
    position: Position,
    held: Set<string>,
    shown: Outcomes,
  ) {
    this.#ctx = ctx
    this.#settings = settings
    this.position = position
    this.#held = held
    this.#shown = shown.of(position.epoch)
  }

  /**
   * Publishes a page. What the sink rejects leads to a rollback and a second plan; then nothing but what is parked
   * differs, and nothing that was taken is sent again. Throws RejectedEventError when the policy is to wait for an event
   * that was rejected, after everything before it was committed.
   */
  async publish(
    page: ReadPage,
    readAhead: () => void,
    signal: AbortSignal,
  ): Promise<'published' | 'stopped'> {
    this.#refuseLarge(page.events)
    for (;;) {
      const plan = this.#plan(page)
      if (plan.blockedBy && plan.lastId <= this.#committedPosition().lastId)
        throw await this.#block(plan.blockedBy)
      const staged = await this.#stage(plan)
      const result =
        plan.send.length === 0 ? allTaken : await this.#send(staged, plan, page, readAhead, signal)
      if (result.rejected.length > 0 || result.stopped) {
        this.#note(plan.send, result)
        await reached('page.rejected')
        await rollbackPrepared(this.#ctx.databases.primary, staged.gid)
        if (result.stopped?.error !== undefined) throw result.stopped.error
        if (result.stopped && signal.aborted) return 'stopped'
        continue
      }
      await reached('page.published')
      this.published += plan.send.length
      this.#open = { ...staged, lastId: plan.lastId }
      for (const key of plan.held) this.#held.add(key)
      if (!plan.blockedBy) return 'published'
      throw await this.#block(plan.blockedBy)
    }
  }

  async skip(lastId: bigint): Promise<void> {
    await this.finish()
    await skipPage(this.#ctx.databases.primary, this.#settings.cursor, this.position, lastId)
    this.position = { ...this.position, no: this.position.no + 1n, lastId, attempt: null }
  }

  /** Commits the last page. */
  async finish(): Promise<void> {
    if (!this.#open) return
    const finished = await commitPrepared(this.#ctx.databases.primary, this.#open.gid)
    if (finished === 'absent')
      throw new FencedError(`the page ${this.#open.gid} was resolved by somebody else`)
    this.position = this.#committedPosition()
    this.#open = undefined
    await reached('page.committed')
  }

  async close(): Promise<void> {
    if (this.#connection) await this.#ctx.databases.primary.staging.release(this.#connection, this.#clean)
  }

  #plan({ events, lastId }: ReadPage): Plan {
    const { policy } = this.#settings
    const { kind } = this.position
    return planPage({
      kind,
      events,
      lastId,
      held: this.#held,
      shown: this.#shown,
      policy,
      random: Math.random,
    })
  }

  get #replay(): bigint | undefined {
    return this.position.kind === 'replay' ? this.position.epoch : undefined
  }

  async #stage(plan: Plan): Promise<Staged> {
    const { cursor, name } = this.#settings
    const { primary } = this.#ctx.databases
    if (isWatched('page.committed')) await this.finish()
    const attempt = newAttempt(this.#ctx.lease.id)
    const gid = formatGid({
      installation: this.#ctx.installation,
      policy: 'presumed-abort',
      participant: primary.name,
      attempt,
      name,
    })
    const at = this.#committedPosition()
    await reached('page.staging')
    this.#connection ??= await primary.staging.acquire()
    try {
      const { xid } = await stagePage(
        this.#connection,
        { cursor, gid, attempt, at, lastId: plan.lastId, changes: changesOf(cursor, plan, this.#replay) },
        primary.ownerRole,
        this.#open?.gid,
      )
      // The page before this one was committed in the same flush.
      this.position = at
      this.#open = undefined
      this.#shown.forgetUpTo(at.lastId)
      await reached('page.prepared')
      return { gid, attempt, xid }
    } catch (error) {
      this.#clean = false
      throw error
    }
  }

  async #send(
    { gid, attempt, xid }: Staged,
    { send }: Plan,
    { events, encoded }: ReadPage,
    readAhead: () => void,
    signal: AbortSignal,
  ): Promise<Published> {
    const { cursor, sink } = this.#settings
    const { generation, epoch, lastId: position, kind } = this.position
    const page: Page = {
      ...cursor,
      generation,
      epoch,
      position,
      replay: kind === 'replay',
      xid,
      attempt,
      events: send,
      ...(send.length === events.length ? { encoded } : {}),
    }
    try {
      const published = sink.publish(page, signal)
      readAhead()
      return await within(publishMs, `publishing a page to ${cursor.sink}`, published)
    } catch (error) {
      if (error instanceof FencedError) throw await this.#refused(gid, error)
      if (error instanceof HoldfastError) throw error
      throw new SinkUnavailableError(`the sink ${cursor.sink} did not take a page: ${messageOf(error)}`, {
        cause: error,
      })
    }
  }

  /**
   * The sink says that a newer relay has published. Another one has resolved this page then, since the page holds the
   * cursor's lock; where it is still there, none was, and the database went back in time and its xids with it.
   */
  async #refused(gid: string, error: FencedError): Promise<Error> {
    const { cursor, sink } = this.#settings
    if (sink.target !== undefined) return error
    if ((await rollbackPrepared(this.#ctx.databases.primary, gid)) === 'absent') return error
    return new RestoredDatabaseError(
      `the sink ${cursor.sink} has seen later pages than the database knows of: it went back in time (restored?). Nothing is published until \`holdfast outbox rebase ${cursor.sink}\` (docs/operations.md)`,
      { cause: error },
    )
  }

  /** Remembers what became of each event, for the next attempt at this page. */
  #note(sent: readonly OutboxEvent[], { rejected, stopped }: Published): void {
    const closed = new Set<string>()
    for (const { event, reason, permanent = false } of rejected) {
      // The first of a key is what was rejected; the later ones wait behind it, whatever the sink says of them.
      if (event.partitionkey !== null && closed.has(event.partitionkey)) continue
      if (event.partitionkey !== null) closed.add(event.partitionkey)
      this.#shown.rejected.set(event.id, { reason, permanent })
      this.rejected++
    }
    const refused = new Set(rejected.map(({ event }) => event.id))
    const taken = stopped ? stopped.taken : sent.filter(({ id }) => !refused.has(id))
    for (const { id } of taken) this.#shown.taken.add(id)
    this.published += taken.length
  }

  /** What is larger than the sink takes is rejected before it is sent. */
  #refuseLarge(events: readonly OutboxEvent[]): void {
    const { maxBytes } = this.#settings
    if (maxBytes === undefined) return
    for (const event of events) {
      const bytes = bytesOver(event.json, maxBytes)
      if (bytes === undefined) continue
      const reason = `takes ${bytes} bytes, the sink ${maxBytes} at most`
      this.#shown.rejected.set(event.id, { reason, permanent: true })
    }
  }

  /** Commits what comes before the event, and forgets the rejections: the next run asks the sink again. */
  async #block({ event, reason }: NonNullable<Plan['blockedBy']>): Promise<RejectedEventError> {
    await this.finish()
    this.#shown.rejected.clear()
    return new RejectedEventError(
      `event ${event.eventId} is rejected (${reason}), and the sink's policy is to wait for it; mend the sink, or set onReject to park or skip`,
    )
  }

  /** Where the cursor stands once the open page is committed. */
  #committedPosition(): Position {
    if (!this.#open) return this.position
    const { lastId, attempt } = this.#open
    return { ...this.position, no: this.position.no + 1n, lastId, attempt }
  }
}

type Staged = { gid: string; attempt: string; xid: bigint }

const allTaken: Published = { rejected: [] }

function changesOf(cursor: Cursor, { park, unpark, again }: Plan, replay: bigint | undefined): string[] {
  const changes: string[] = []
  if (park.length > 0) changes.push(parkText(cursor, park, replay))
  if (unpark.length > 0) changes.push(unparkText(cursor, unpark))
  if (again.length > 0) changes.push(rejectAgainText(cursor, again))
  return changes
}
