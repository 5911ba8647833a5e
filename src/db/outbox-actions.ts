import type { Participant, Sql } from './databases.ts'
import {
  CursorBusyError,
  InvalidConfigError,
  InvalidPayloadError,
  NotAllowedError,
  UnknownSinkError,
} from './errors.ts'
import { isEventId } from './event-ids.ts'
import { messageOf } from './message-of.ts'
import { SQLSTATE, sqlstateOf } from './sqlstate.ts'
import type { Tx } from './tx.ts'

/**
 * An operator's hand on the outbox: the audited functions of migration 0007, which an application's role may not call.
 * Each locks the cursors of the sink, so it waits for a page that is on its way, a few seconds at most.
 *
 * All throw InvalidConfigError (no reason), UnknownSinkError, CursorBusyError (try again; nothing was changed) and
 * NotAllowedError (this login is no operator).
 */
export type OutboxHand = {
  /** who, as the operator says; the login is recorded beside it */
  who: string
  why: string
}

const lockTimeout = '5s'

/** Gives dead events another chance, in their order; without `events` all of the sink's. Returns how many. */
export function redriveParked(
  primary: Participant,
  sink: string,
  hand: OutboxHand & { events?: readonly string[] },
): Promise<number> {
  return changeDead(primary, 'redrive_parked', sink, hand)
}

/** Drops dead events, and what waited behind them goes on; without `events` all of the sink's. Returns how many. */
export function discardParked(
  primary: Participant,
  sink: string,
  hand: OutboxHand & { events?: readonly string[] },
): Promise<number> {
  return changeDead(primary, 'discard_parked', sink, hand)
}

async function changeDead(
  primary: Participant,
  how: 'redrive_parked' | 'discard_parked',
  sink: string,
  hand: OutboxHand & { events?: readonly string[] },
): Promise<number> {
  const events = checkEvents(hand.events)
  return act(primary, sink, hand, async (tx) => {
    const [row] = await tx<{ n: number }[]>`
      select holdfast.${tx(how)}(${sink}, ${events}::uuid[], ${hand.who}, ${hand.why})::int as n`
    return row?.n ?? 0
  })
}

/** The ids of the events that a redrive or a discard would be about. Throws UnknownSinkError. */
export async function findDead(sql: Sql, sink: string, events?: readonly string[]): Promise<string[]> {
  const only = checkEvents(events)
  await shardsOf(sql, sink)
  const rows = await sql<{ id: string }[]>`
    select event_id as id from holdfast.outbox_parked
    where sink = ${sink} and dead_at is not null and (${only}::uuid[] is null or event_id = any (${only}::uuid[]))
    order by shard, no`
  return rows.map((row) => row.id)
}

/** A time: what became visible after it. An event: what comes from it on. */
export type ReplayFrom = { since: Date } | { event: string }

/**
 * Sends a sink again what it has had; each shard starts when it comes to the end of its list. Throws InvalidPayloadError
 * when the outbox holds no such event (any more), CursorBusyError when a replay waits already.
 */
export async function replayOutbox(
  primary: Participant,
  sink: string,
  from: ReplayFrom,
  hand: OutboxHand,
): Promise<void> {
  const since = 'since' in from ? from.since.toISOString() : null
  const [event = null] = checkEvents('event' in from ? [from.event] : undefined) ?? []
  await act(primary, sink, hand, async (tx) => {
    await tx`
      select holdfast.replay_outbox(${sink}, ${since}::timestamptz, ${event}::uuid, ${hand.who}, ${hand.why})`
  })
}

/**
 * After the database was restored from a dump: each cursor of the sink goes once, by id, through what it has not passed.
 * Waits for every transaction that has appended events, prepared ones as well. Returns the shards of these cursors.
 */
export async function rebaseOutbox(primary: Participant, sink: string, hand: OutboxHand): Promise<number[]> {
  return act(primary, sink, hand, async (tx, shards) => {
    await tx`select holdfast.rebase_outbox(${sink}, ${hand.who}, ${hand.why})`
    return shards
  })
}

/**
 * Forgets a sink that is no longer configured, with its cursors and what it has parked. Events that it has not taken are
 * lost to it. Returns the shards of its cursors.
 */
export async function forgetSink(primary: Participant, sink: string, hand: OutboxHand): Promise<number[]> {
  return act(primary, sink, hand, async (tx, shards) => {
    await tx`select holdfast.forget_sink(${sink}, ${hand.who}, ${hand.why})`
    return shards
  })
}

async function act<T>(
  primary: Participant,
  sink: string,
  { why }: OutboxHand,
  work: (tx: Tx, shards: number[]) => Promise<T>,
): Promise<T> {
  if (why.trim() === '') throw new InvalidConfigError(['what is done by hand needs a reason'])
  try {
    return await primary.transaction(async (tx) => {
      await tx.unsafe(`set local lock_timeout = '${lockTimeout}'`)
      const shards = await shardsOf(tx, sink)
      return work(tx, shards)
    })
  } catch (error) {
    throw explain(sink, error)
  }
}

/** The shards of a sink's cursors. Throws UnknownSinkError when it has none. */
async function shardsOf(sql: Tx | Sql, sink: string): Promise<number[]> {
  const cursors = await sql<{ sink: string; shard: number }[]>`
    select sink, shard from holdfast.outbox_cursors order by sink, shard`
  const own = cursors.filter((cursor) => cursor.sink === sink)
  if (own.length > 0) return own.map(({ shard }) => shard)
  const known = [...new Set(cursors.map((cursor) => cursor.sink))]
  const there = known.length === 0 ? 'no sink has' : `those that have: ${known.join(', ')}`
  throw new UnknownSinkError(`no sink named ${JSON.stringify(sink)} has a cursor in the outbox; ${there}`)
}

function explain(sink: string, error: unknown): unknown {
  switch (sqlstateOf(error)) {
    case SQLSTATE.lockNotAvailable:
      return new CursorBusyError(
        `a page that is on its way, or a transaction in doubt, holds what this needs of ${sink}; nothing was changed. Try again; if it stays so, \`holdfast tx list\` shows what is in doubt`,
        { cause: error },
      )
    case SQLSTATE.notInPrerequisiteState:
      return new CursorBusyError(
        `${messageOf(error)}; it starts when each shard has come to the end of its list, as \`holdfast outbox stats\` shows`,
        { cause: error },
      )
    case SQLSTATE.invalidParameterValue:
      return new InvalidPayloadError(messageOf(error), { cause: error })
    case SQLSTATE.insufficientPrivilege:
      return new NotAllowedError(
        `this login may not change the outbox by hand (${messageOf(error)}); use one that is a member of holdfast_operator`,
        { cause: error },
      )
    default:
      return error
  }
}

function checkEvents(events: readonly string[] | undefined): string[] | null {
  if (events === undefined) return null
  const wrong = events.find((id) => !isEventId(id))
  if (wrong !== undefined)
    throw new InvalidPayloadError(`${JSON.stringify(wrong)} is not the id of an event, which is a UUID`)
  return [...events]
}
