import { randomBytes, randomUUID } from 'node:crypto'
import { describe, expect, it, onTestFinished } from 'vitest'
import { Databases, type Participant } from '../../src/db/databases.ts'
import {
  CursorBusyError,
  InvalidConfigError,
  InvalidPayloadError,
  NotAllowedError,
  UnknownSinkError,
} from '../../src/db/errors.ts'
import { appendEvents } from '../../src/db/outbox.ts'
import {
  discardParked,
  findDead,
  forgetSink,
  type OutboxHand,
  rebaseOutbox,
  redriveParked,
  replayOutbox,
} from '../../src/db/outbox-actions.ts'
import { listParked, readOutboxStats } from '../../src/db/outbox-stats.ts'
import { beginDistributed } from '../../src/jobs/begin.ts'
import { rollbackDistributed } from '../../src/jobs/coordinator.ts'
import { newDatabases, openContext } from '../support/database.ts'
import { HandCursor, holdCursors } from '../support/outbox-cursor.ts'

const hand: OutboxHand = { who: 'jo', why: 'the account is there now' }

async function open() {
  const urls = await newDatabases()
  const ctx = await openContext(urls)
  const { primary } = ctx.databases
  const cursor = await HandCursor.create(primary.sql, 'orders', 0)
  return { ctx, primary, sql: primary.sql, cursor, urls }
}

const actions: Record<string, (primary: Participant, sink: string, hand: OutboxHand) => Promise<unknown>> = {
  redrive: redriveParked,
  discard: discardParked,
  replay: (primary, sink, hand) => replayOutbox(primary, sink, { since: new Date() }, hand),
  rebase: rebaseOutbox,
  forget: forgetSink,
}

/** All that the actions may change. */
async function everything({ sql }: Participant) {
  const tables = ['cursors', 'positions', 'parked', 'replays', 'circuits', 'actions']
  const read = (table: string) => sql.unsafe(`select * from holdfast.outbox_${table} t order by t::text`)
  return JSON.stringify(await Promise.all(tables.map(read)))
}

describe.each(Object.entries(actions))('%s', (name, act) => {
  it('is recorded with who and why, in the transaction that does it', async () => {
    const { primary, sql, cursor } = await open()
    await cursor.park('a', { dead: true })
    await act(primary, 'orders', hand)
    expect(await sql`select action, sink, actor, reason from holdfast.outbox_actions`).toEqual([
      { action: name, sink: 'orders', actor: expect.stringMatching(/^[^/]+\/jo$/), reason: hand.why },
    ])
  })

  it('is refused without a reason and for a sink that is not there, and changes nothing', async () => {
    const { primary, cursor } = await open()
    await cursor.park('a', { dead: true })
    const before = await everything(primary)
    await expect(act(primary, 'orders', { ...hand, why: ' ' })).rejects.toThrow(InvalidConfigError)
    await expect(act(primary, 'oders', hand)).rejects.toThrow(UnknownSinkError)
    await expect(act(primary, 'oders', hand)).rejects.toThrow('those that have: orders')
    expect(await everything(primary)).toBe(before)
  })

  it('is refused to a login that is no operator, although it may read all there is', async () => {
    const { primary, sql, cursor, urls } = await open()
    await cursor.park('a', { dead: true })
    const login = `test_${randomBytes(6).toString('hex')}`
    await sql.unsafe(`create role ${login} login password 'x'; grant usage on schema holdfast to ${login};
      grant select, insert, update, delete on all tables in schema holdfast to ${login}`)
    const url = new URL(urls.primary!)
    url.username = login
    url.password = 'x'
    const theirs = new Databases({ primary: url.href })
    onTestFinished(async () => {
      await theirs.end()
      await sql.unsafe(`drop owned by ${login}; drop role ${login}`)
    })
    const before = await everything(primary)
    await expect(act(theirs.primary, 'orders', hand)).rejects.toThrow(NotAllowedError)
    expect(await everything(primary)).toBe(before)
  })
})

describe.each(['redrive', 'discard', 'rebase', 'forget'])('%s', (name) => {
  it('says so when a page in doubt holds the cursor, and changes nothing', async () => {
    const { primary, cursor } = await open()
    await cursor.park('a', { dead: true })
    const release = await holdCursors(primary.url)
    const before = await everything(primary)
    const error = await actions[name]!(primary, 'orders', hand).catch((e: unknown) => e)
    await release()
    expect(error).toBeInstanceOf(CursorBusyError)
    expect(String(error)).toContain('holdfast tx list')
    expect(await everything(primary)).toBe(before)
    await actions[name]!(primary, 'orders', hand)
    expect(await everything(primary)).not.toBe(before)
  })
})

describe('redrive and discard', () => {
  it('are about the dead alone: all of the sink, or those that are named', async () => {
    const { primary, sql, cursor } = await open()
    const other = await HandCursor.create(sql, 'mail', 0)
    await other.park('a', { dead: true })
    const [first, behind, second, third] = [
      await cursor.park('a', { dead: true }),
      await cursor.park('a'),
      await cursor.park('b', { dead: true }),
      await cursor.park('c', { dead: true }),
    ]
    const dead = async () =>
      (await listParked(sql, { sink: 'orders', dead: true, limit: 10 })).map((event) => event.eventId)
    expect(await findDead(sql, 'orders')).toEqual([first, second, third])
    expect(await findDead(sql, 'orders', [second, behind])).toEqual([second])
    expect(await redriveParked(primary, 'orders', { ...hand, events: [second, behind] })).toBe(1)
    expect(await dead()).toEqual([first, third])
    expect(await discardParked(primary, 'orders', { ...hand, events: [first] })).toBe(1)
    const waiting = await listParked(sql, { sink: 'orders', dead: false, limit: 10 })
    // What was behind the first is due now.
    expect(waiting).toMatchObject([
      { eventId: behind, retryAt: expect.any(Date) },
      { eventId: second, attempts: 0, retryAt: expect.any(Date) },
    ])
    expect(await redriveParked(primary, 'orders', hand)).toBe(1)
    expect(await dead()).toEqual([])
    expect(await listParked(sql, { sink: 'mail', dead: true, limit: 10 })).toHaveLength(1)
    await expect(redriveParked(primary, 'orders', { ...hand, events: ['all'] })).rejects.toThrow(
      InvalidPayloadError,
    )
    await expect(findDead(sql, 'oders')).rejects.toThrow(UnknownSinkError)
  })
})

describe('replay', () => {
  it('waits for its cursors, once, from a time or from an event that the outbox holds', async () => {
    const { primary, sql } = await open()
    const [id] = await primary.transaction((tx) => appendEvents(tx, { type: 't', subject: 'a' }))
    await expect(replayOutbox(primary, 'orders', { event: randomUUID() }, hand)).rejects.toThrow(
      InvalidPayloadError,
    )
    await replayOutbox(primary, 'orders', { event: id! }, hand)
    expect(await sql`select sink, shard, since, since_id from holdfast.outbox_replays`).toEqual([
      { sink: 'orders', shard: 0, since: null, since_id: '1' },
    ])
    const again = replayOutbox(primary, 'orders', { since: new Date() }, hand)
    await expect(again).rejects.toThrow(CursorBusyError)
    await expect(again).rejects.toThrow('waits already')
    expect(await sql`select from holdfast.outbox_actions`).toHaveLength(1)
    await sql`delete from holdfast.outbox_replays`
    await sql`
      insert into holdfast.outbox_snapshots (at, snapshot, sequence, floor)
      values ('2030-01-01T10:00:00Z', '100:100:', 5, 0), ('2030-01-01T11:00:00Z', '200:200:', 9, 0)`
    await replayOutbox(primary, 'orders', { since: new Date('2030-01-01T10:59:59.999Z') }, hand)
    expect(await sql`select since::text from holdfast.outbox_replays`).toEqual([{ since: '100:100:' }])
  })
})

describe('rebase', () => {
  it('waits for events that are in doubt, which it would not see', async () => {
    const { ctx, primary } = await open()
    await beginDistributed(ctx, 'in-doubt', (tx) => appendEvents(tx, { type: 't' }))
    const before = await everything(primary)
    await expect(rebaseOutbox(primary, 'orders', hand)).rejects.toThrow(CursorBusyError)
    expect(await everything(primary)).toBe(before)
    await rollbackDistributed(ctx, 'in-doubt', 'test')
    expect(await rebaseOutbox(primary, 'orders', hand)).toEqual([0])
    expect((await readOutboxStats(primary.sql)).cursors).toMatchObject([{ epoch: 'rebase' }])
  })
})

describe('forget', () => {
  it('leaves nothing of the sink, and all of the others', async () => {
    const { primary, sql, cursor } = await open()
    await HandCursor.create(sql, 'orders', 1)
    const other = await HandCursor.create(sql, 'mail', 0)
    for (const one of [cursor, other]) await one.park('a', { dead: true })
    expect(await forgetSink(primary, 'orders', hand)).toEqual([0, 1])
    expect((await readOutboxStats(sql)).cursors).toMatchObject([{ sink: 'mail', dead: 1 }])
    expect(await sql`select from holdfast.outbox_positions where sink = 'orders'`).toHaveLength(0)
    await expect(forgetSink(primary, 'orders', hand)).rejects.toThrow(UnknownSinkError)
  })
})
