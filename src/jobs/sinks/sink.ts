import type { Logger } from 'pino'
import type { Databases } from '../../db/databases.ts'
import type { OutboxEvent } from '../../db/outbox-event.ts'
import type { Clock } from '../clock.ts'

/**
 * One page of the outbox on its way to a sink. The same page may come again: after a crash, or from a relay that lost
 * its lease without noticing (a zombie). A sink that remembers can tell by `generation`, `epoch`, `position` and `xid`.
 */
export type Page = {
  sink: string
  shard: number
  /** raised when the database was restored: what a sink remembers of an earlier generation is void */
  generation: number
  /** counts the fixed lists of events that this cursor went through */
  epoch: bigint
  /** the last id of this epoch that is committed as published; events at or below it never come again */
  position: bigint
  /** the staged transaction of this page; a later holder of the cursor has a higher one */
  xid: bigint
  attempt: string
  /** the list is sent on purpose although its events were sent before */
  replay: boolean
  /** ordered by id */
  events: readonly OutboxEvent[]
  /** what `encode` made of the events */
  encoded?: unknown
}

/** `permanent`: trying again is of no use. Not permanent: after a while it may be taken. */
export type Rejection = { event: OutboxEvent; reason: string; permanent?: boolean }

/**
 * `rejected`: what the sink does not take as it is, while it takes others. All other events were taken. After a rejected
 * event nothing more of its key was taken; those are rejected as well.
 *
 * `stopped`: the sink became unavailable on the way (`error`), or the page takes too long (no error). Then only `taken` was
 * certainly taken, of the rest nothing is known; the relay sends the page again without what was taken.
 */
export type Published = {
  rejected: readonly Rejection[]
  stopped?: { error?: unknown; taken: readonly OutboxEvent[] }
}

export type SinkContext = {
  databases: Databases
  installation: string
  /** the sink's name in the config */
  name: string
  log: Logger
  clock: Clock
  /** how much later than the first time a page may come again after a crash, while workers run at all; milliseconds */
  worstRetryMs: number
}

export interface OpenSink {
  /**
   * The participant in which `publish` commits the page's marker, for a sink whose target is one of the configured
   * databases. It stands in the page's name, so whoever resolves the page in doubt knows where to ask.
   */
  readonly target?: string
  /** Work on a page that does not need it staged, such as serialising: done while the page before it is on its way. */
  encode?(events: readonly OutboxEvent[]): unknown
  /**
   * Takes a page. Throws SinkUnavailableError when it can take nothing now, FencedError when a newer relay was here;
   * after an error the relay cannot know what was taken, and sends the page again.
   */
  publish(page: Page, signal: AbortSignal): Promise<Published>
  close(): Promise<void>
}

/** What becomes of an event that the sink rejects. */
export type SinkPolicy = {
  /**
   * park: it waits in the parked list, tried again with back-off, and with it the later events of its key; all others
   * flow. block: the shard waits for it. skip: it goes to the dead list at once, and its key flows on. Default park.
   */
  readonly onReject?: 'park' | 'block' | 'skip'
  /** how often an event is tried before it counts as dead; default 10 */
  readonly maxAttempts?: number
  /** whether the later events of its key wait for a dead one to be redriven or discarded; default wait */
  readonly afterDead?: 'wait' | 'flow'
}

export type Sink = {
  /** what it promises about each event, and until when */
  readonly guarantee: string
  /** the largest event that it takes, as CloudEvent in JSON; bytes of UTF-8 */
  readonly maxEventBytes?: number
  readonly policy?: SinkPolicy
  /** Opens no connection yet that may fail: a sink that is away must not keep a worker from starting. */
  open(context: SinkContext): Promise<OpenSink>
}

/**
 * The id of a message, by which the receiver's side can recognise one that comes again: the event's, but another one in a
 * replay, which is to arrive although the event was there before (also when it was rejected in it and is tried again).
 */
export function messageIdOf(page: Pick<Page, 'replay' | 'epoch'>, event: OutboxEvent): string {
  const replay = page.replay ? page.epoch : event.replay
  return replay === null ? event.eventId : `${event.eventId}_${replay}`
}
