import { describe, expect, it } from 'vitest'
import { CursorBusyError, InvalidPayloadError } from '../../src/db/errors.ts'
import { appendEvents } from '../../src/db/outbox.ts'
import { type ReplayFrom, replayOutbox } from '../../src/db/outbox-actions.ts'
import { readPosition } from '../../src/db/outbox-cursors.ts'
import { beginDistributed } from '../../src/jobs/begin.ts'
import type { JobContext } from '../../src/jobs/context.ts'
import { commitDistributed } from '../../src/jobs/coordinator.ts'
import type { OpenSink } from '../../src/jobs/sinks/sink.ts'
import { sinkContext } from '../../src/jobs/sinks/sink-context.ts'
import { table } from '../../src/jobs/sinks/table.ts'
import { newDatabases, openContext } from '../support/database.ts'
import {
  append,
  hand,
  holdAt,
  keysBesides,
  makeDue,
  numberedEvent,
  parked,
  putOffRetries,
  shardOf,
} from '../support/outbox-relay.ts'
import { preparedGids } from '../support/prepared-gids.ts'
import { Receiver } from '../support/receiver.ts'
import { Relays } from '../support/relays.ts'

const signal = new AbortController().signal
const upTo = (n: number) => Array.from({ length: n }, (_, i) => i + 1)
const since = new Date('2026-01-01T00:00:00Z')

function relayTo(ctx: JobContext, open: OpenSink, pageSize = 10, sink = 'sink'): Relays {
  return new Relays(ctx, open, { sink, pageSize, wants: () => true })
}

async function open(pageSize = 10) {
  const ctx = await openContext(await newDatabases())
  await putOffRetries(ctx)
  const receiver = await Receiver.create(ctx)
  const relay = relayTo(ctx, await receiver.open(), pageSize)
  const replay = (from: ReplayFrom) => replayOutbox(ctx.databases.primary, 'sink', from, hand)
  return { ctx, receiver, relay, drain: () => relay.drain(signal), replay }
}

/** Writes down what is visible now as what was visible at `since`. */
async function recordSnapshot({ databases: { primary } }: JobContext, floor = 0): Promise<void> {
  await primary.sql`
    insert into holdfast.outbox_snapshots (at, snapshot, sequence, floor)
    values (${since}, pg_current_snapshot(), (select last_value from holdfast.outbox_id), ${floor})`
}

describe('a replay since a time', () => {
  it('sends what became visible after it, what committed late as well, and nothing that was visible', async () => {
    const { ctx, receiver, drain, replay } = await open()
    await append(ctx, 'a', 1)
    await beginDistributed(ctx, 'late', (tx) => appendEvents(tx, numberedEvent('a', 2)))
    await append(ctx, 'a', 3)
    await drain()
    await recordSnapshot(ctx)
    await append(ctx, 'a', 4)
    await commitDistributed(ctx, 'late')
    await append(ctx, 'a', 5)
    await drain()
    expect(await receiver.numbers('a')).toEqual([1, 3, 2, 4, 5])
    await replay({ since })
    await drain()
    expect((await receiver.numbers('a')).slice(5)).toEqual([2, 4, 5])
    await drain()
    expect(await receiver.received()).toHaveLength(8)
  })

  it('of which nothing is recorded sends all that is kept', async () => {
    const { ctx, receiver, drain, replay } = await open()
    await append(ctx, 'a', 1, 2)
    await drain()
    await recordSnapshot(ctx)
    await append(ctx, 'a', 3)
    await drain()
    await replay({ since: new Date(since.getTime() - 1) })
    await drain()
    expect(await receiver.numbers('a')).toEqual([1, 2, 3, 1, 2, 3])
  })

  it('does not send what no relay has sent yet twice', async () => {
    const { ctx, receiver, drain, replay } = await open()
    await append(ctx, 'a', 1)
    await drain()
    await recordSnapshot(ctx)
    await append(ctx, 'a', 2)
    await replay({ since })
    await drain()
    expect(await receiver.numbers('a')).toEqual([1, 2])
  })
})

describe('a replay from an event', () => {
  it('sends what comes from it on in the outbox, in every shard', async () => {
    const { ctx, receiver, drain, replay } = await open()
    const { other } = await keysBesides(ctx, 'a')
    await append(ctx, other, 11)
    const [, second] = await append(ctx, 'a', 1, 2, 3)
    await append(ctx, other, 12)
    await drain()
    await replay({ event: second! })
    await drain()
    expect(await receiver.numbers('a')).toEqual([1, 2, 3, 2, 3])
    expect(await receiver.numbers(other)).toEqual([11, 12, 12])
  })

  it('that the outbox does not hold is refused', async () => {
    const { ctx, drain, replay } = await open()
    await append(ctx, 'a', 1)
    await drain()
    await expect(replay({ event: crypto.randomUUID() })).rejects.toThrow(InvalidPayloadError)
    expect(await ctx.databases.primary.sql`select from holdfast.outbox_replays`).toHaveLength(0)
  })
})

describe('a replay', () => {
  it('gives messages ids of their own, and events the ones they had', async () => {
    const { ctx, receiver, drain, replay } = await open()
    const ids = await append(ctx, 'a', 1, 2)
    await drain()
    for (let again = 0; again < 2; again++) {
      await replay({ event: ids[0]! })
      await drain()
    }
    const rows = await receiver.received()
    expect(rows.map(({ eventId }) => eventId)).toEqual([...ids, ...ids, ...ids])
    expect(rows.slice(0, 2).map(({ messageId }) => messageId)).toEqual(ids)
    expect(new Set(rows.map(({ messageId }) => messageId)).size).toBe(6)
  })

  it('sends nothing that is parked: that comes from there, once', async () => {
    const { ctx, receiver, drain, replay } = await open()
    const { same } = await keysBesides(ctx, 'a')
    receiver.reject(2)
    const [first] = await append(ctx, 'a', 1, 2, 3)
    await append(ctx, same, 4)
    await drain()
    await replay({ event: first! })
    await drain()
    expect(await receiver.numbers(same)).toEqual([4, 4])
    receiver.heal()
    await makeDue(ctx)
    await drain()
    const times = (n: number) => receiver.tried.get(n)
    expect([times(1), times(2), times(3)]).toEqual([2, 2, 1])
    // What was sent on purpose waits in its key's line.
    expect(await receiver.numbers('a')).toEqual([1, 2, 3, 1])
    expect(await parked(ctx)).toEqual([])
  })

  it('leaves the base where it was, and other sinks alone', async () => {
    const { ctx, receiver, drain, replay } = await open()
    const other = relayTo(ctx, await receiver.open(), 10, 'other')
    const [first] = await append(ctx, 'a', 1, 2)
    await drain()
    await other.drain(signal)
    const shard = await shardOf(ctx, 'a')
    const { sql } = ctx.databases.primary
    const before = await readPosition(sql, { sink: 'sink', shard })
    const othersBefore =
      await sql`select * from holdfast.outbox_positions where sink = 'other' order by shard, no`
    await replay({ event: first! })
    await drain()
    const after = await readPosition(sql, { sink: 'sink', shard })
    expect(after).toMatchObject({ kind: 'events', base: before.target, target: before.target, since: null })
    expect(after.epoch).toBe(before.epoch + 2n)
    expect(
      await sql`select * from holdfast.outbox_positions where sink = 'other' order by shard, no`,
    ).toEqual(othersBefore)
    await other.drain(signal)
    expect(await receiver.numbers('a')).toHaveLength(6)
  })

  it('starts when the cursor has come to the end of its list; a second one is refused until then', async () => {
    const { ctx, receiver, drain, replay } = await open()
    const [first] = await append(ctx, 'a', 1)
    await drain()
    await append(ctx, 'a', 2)
    await replay({ event: first! })
    await expect(replay({ event: first! })).rejects.toThrow(CursorBusyError)
    expect(await ctx.databases.primary.sql`select from holdfast.outbox_actions`).toHaveLength(1)
    await drain()
    await replay({ event: first! })
    await drain()
    expect((await receiver.numbers('a')).filter((n) => n === 1)).toHaveLength(3)
  })

  it('that was abandoned in the middle goes on where it was, and what is appended meanwhile comes after it, once', async () => {
    const { ctx, receiver, relay, drain, replay } = await open(2)
    const [first] = await append(ctx, 'a', ...upTo(7))
    await drain()
    await replay({ event: first! })
    const stop = new AbortController()
    const one = (await relay.all())[await shardOf(ctx, 'a')]!
    const { running, release } = await holdAt('page.committed', () => one.drain(stop.signal))
    await append(ctx, 'a', 8, 9)
    stop.abort()
    release()
    expect(await running).toMatchObject({ outcome: 'stopped' })
    expect((await receiver.received()).length).toBeLessThan(14)
    const heir = relayTo(ctx, await receiver.open(), 3)
    await append(ctx, 'a', 10)
    await heir.drain(signal)
    expect(await receiver.numbers('a')).toEqual([...upTo(7), ...upTo(10)])
  })

  it.each(['page.prepared', 'page.published'] as const)(
    'whose process died at %s is taken over, and the zombie doubles nothing',
    async (step) => {
      const urls = await newDatabases({ billing: 'west' })
      const [zombie, heir] = [await openContext(urls), await openContext(urls)]
      const openTable = (ctx: JobContext) => table({ database: 'billing' }).open(sinkContext(ctx, 'sink'))
      const [first] = await append(heir, 'a', ...upTo(7))
      const heirs = relayTo(heir, await openTable(heir), 3)
      await heirs.drain(signal)
      await replayOutbox(heir.databases.primary, 'sink', { event: first! }, hand)
      const zombies = await relayTo(zombie, await openTable(zombie), 3).all()
      const one = zombies[await shardOf(heir, 'a')]!
      const { running, release } = await holdAt(step, () => one.drain(signal))
      await heir.databases.primary.sql`
        update holdfast.workers set lease_until = clock_timestamp() - interval '1 second' where id = ${zombie.lease.id}`
      await heirs.drain(signal)
      release()
      expect(await running).toMatchObject({ outcome: 'stepped-back' })
      await heirs.drain(signal)
      const rows = await heir.databases.get('billing').sql<{ n: number }[]>`
        select (data->>'n')::int as n from holdfast.inbox order by seq`
      expect(rows.map(({ n }) => n)).toEqual([...upTo(7), ...upTo(7)])
      expect(await preparedGids(heir)).toEqual([])
    },
  )
})
