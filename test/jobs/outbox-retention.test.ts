import { readdirSync, readFileSync } from 'node:fs'
import { describe, expect, it, onTestFinished, vi } from 'vitest'
import { createClient } from '../../src/db/client.ts'
import type { Sql } from '../../src/db/databases.ts'
import { emptySlot, type Look, lookAtSlot } from '../../src/db/outbox-retention.ts'
import { moveToSlot, readSlots, slots } from '../../src/db/outbox-ring.ts'
import type { Retention } from '../../src/db/retention.ts'
import { beginDistributed } from '../../src/jobs/begin.ts'
import { cleanStaleTransactions } from '../../src/jobs/clean-stale-transactions.ts'
import type { JobContext } from '../../src/jobs/context.ts'
import { commitDistributed } from '../../src/jobs/coordinator.ts'
import { type OutboxReport, removeOldOutbox } from '../../src/jobs/remove-old-outbox.ts'
import { newDatabase, newDatabases, openContext } from '../support/database.ts'
import { preparedGids } from '../support/prepared-gids.ts'
import { SqlCursor } from '../support/sql-cursor.ts'

const signal = new AbortController().signal
const hourMs = 60 * 60 * 1000
const dayMs = 24 * hourMs
const week: Retention = { transactionsMs: dayMs, eventsMs: dayMs, outboxMs: 7 * dayMs }

const arrange = async () => openContext(await newDatabases())

const insertText = (shard: number, n: number) => `
  insert into holdfast.outbox (shard, event_id, type, event)
  values (${shard}, gen_random_uuid(), 'test.counted', '{"data":${n}}') returning id`

const append = async (ctx: JobContext, n: number, shard = 0) => {
  const [row] = await ctx.databases.primary.sql.unsafe<{ id: string }[]>(insertText(shard, n))
  return row?.id ?? ''
}

/** The numbers of the events that are there, by slot. */
async function kept(ctx: JobContext): Promise<Record<number, number[]>> {
  const rows = await ctx.databases.primary.sql<{ slot: number; numbers: number[] }[]>`
    select slot, array_agg((event::json ->> 'data')::int order by id) as numbers from holdfast.outbox group by slot`
  return Object.fromEntries(rows.map(({ slot, numbers }) => [slot, numbers]))
}

/** As if that time had gone by. */
async function age(ctx: JobContext, ms: number): Promise<void> {
  await ctx.databases.primary.sql`
    update holdfast.outbox set created_at = created_at - make_interval(secs => ${ms / 1000})`
}

const moveTo = (ctx: JobContext, slot: number) =>
  ctx.databases.primary.transaction((tx) => moveToSlot(tx, slot))
const remove = (ctx: JobContext, retention = week) => removeOldOutbox(ctx, retention, signal)
const nothing: OutboxReport = { emptied: [], kept: [] }

/** Two old events in slot 0, both passed by the one sink; new ones go to slot 1. */
async function arrangeOld(): Promise<{ ctx: JobContext; cursors: SqlCursor[] }> {
  const ctx = await arrange()
  const cursors = await SqlCursor.makeAll(ctx.databases.primary, 'mail')
  await append(ctx, 1)
  await append(ctx, 2, 1)
  await age(ctx, 8 * dayMs)
  for (const cursor of cursors) await cursor.pass()
  await moveTo(ctx, 1)
  return { ctx, cursors }
}

async function look(ctx: JobContext): Promise<Look> {
  const looked = await ctx.databases.primary.transaction((tx) => lookAtSlot(tx, 0, 7 * dayMs))
  if (typeof looked === 'string' || 'behind' in looked) throw new Error(`kept: ${JSON.stringify(looked)}`)
  return looked
}

function connect(ctx: JobContext): Sql {
  const sql = createClient(ctx.databases.primary.url, { max: 1 })
  onTestFinished(() => sql.end({ timeout: 5 }))
  return sql
}

/** The partitions that a statement locks, and how. */
async function locksOf(ctx: JobContext, text: string): Promise<string[]> {
  return ctx.databases.primary.transaction(async (tx) => {
    await tx.unsafe(text)
    const rows = await tx<{ lock: string }[]>`
      select c.relname || ' ' || mode as lock from pg_locks l join pg_class c on c.oid = l.relation
      where l.pid = pg_backend_pid() and c.relkind in ('r', 'p') and c.relname like 'outbox%' order by 1`
    return rows.map(({ lock }) => lock)
  })
}

describe('locks, which the ring relies on', () => {
  it('an append locks the slot it goes to and no other, a read all, the removal its own', async () => {
    const ctx = await arrange()
    await moveTo(ctx, 3)
    expect(await locksOf(ctx, `select holdfast.publish('t', 's', '1')`)).toEqual([
      'outbox RowExclusiveLock',
      'outbox_3 RowExclusiveLock',
    ])
    expect(await locksOf(ctx, 'select id from holdfast.outbox where shard = 1')).toEqual([
      'outbox AccessShareLock',
      ...slots.map((slot) => `outbox_${slot} AccessShareLock`),
    ])
    const removal = 'lock table holdfast.outbox_2 in access exclusive mode; truncate holdfast.outbox_2'
    expect(await locksOf(ctx, removal)).toEqual(['outbox_2 AccessExclusiveLock', 'outbox_2 ShareLock'])
  })
})

describe('a slot goes', () => {
  it('when all of it is old and every cursor has passed it, and nothing else does', async () => {
    const { ctx, cursors } = await arrangeOld()
    await append(ctx, 3)
    await moveTo(ctx, 2)
    await append(ctx, 4)
    for (const cursor of cursors) await cursor.pass()
    expect(await remove(ctx)).toEqual({ emptied: [0], kept: [] })
    expect(await kept(ctx)).toEqual({ 1: [3], 2: [4] })
    expect(await remove(ctx)).toEqual(nothing)
  })

  it('not before its youngest row is old, wherever that is', async () => {
    const { ctx, cursors } = await arrangeOld()
    await moveTo(ctx, 0)
    await append(ctx, 3)
    await cursors[0]?.pass()
    await moveTo(ctx, 1)
    await age(ctx, 8 * dayMs)
    // The row with the highest xid of the shard is old, one before it is not.
    await ctx.databases.primary.sql`
      update holdfast.outbox set created_at = clock_timestamp() - interval '6 days' where event::json ->> 'data' = '1'`
    expect(await remove(ctx)).toEqual(nothing)
    await age(ctx, 2 * dayMs)
    expect(await remove(ctx)).toEqual({ emptied: [0], kept: [] })
  })

  it('not while new rows go there, however old it is', async () => {
    const { ctx } = await arrangeOld()
    await moveTo(ctx, 0)
    expect(await remove(ctx)).toEqual(nothing)
    // That run let new rows go to another slot.
    expect(await remove(ctx)).toEqual({ emptied: [0], kept: [] })
  })

  it('as part of the hourly clean-up, also by the time that the config says', async () => {
    const { ctx } = await arrangeOld()
    const longer = { ...week, outboxMs: 9 * dayMs }
    expect(await cleanStaleTransactions(ctx, longer, signal)).toMatchObject({ partitions: 0 })
    expect(await cleanStaleTransactions(ctx, week, signal)).toMatchObject({ partitions: 1 })
    const { outboxMs: _, ...without } = week
    await moveTo(ctx, 0)
    await append(ctx, 3)
    await moveTo(ctx, 1)
    await age(ctx, 365 * dayMs)
    expect(await removeOldOutbox(ctx, without, signal)).toEqual(nothing)
    expect(await kept(ctx)).toEqual({ 0: [3] })
  })
})

describe('a slot stays', () => {
  it('for the cursor that lags, which is named', async () => {
    const { ctx, cursors } = await arrangeOld()
    const slow = await SqlCursor.makeAll(ctx.databases.primary, 'slow')
    const behind = (by: string[]) => ({ emptied: [], kept: [{ slot: 0, why: 'behind', by }] })
    expect(await remove(ctx)).toEqual(behind(['slow/0', 'slow/1']))
    await slow[1]?.pass()
    expect(await remove(ctx)).toEqual(behind(['slow/0']))
    await slow[0]?.pass()
    // What it is sent again counts as not passed.
    await cursors[0]?.turnTo('replay')
    expect(await remove(ctx)).toEqual(behind(['mail/0']))
    expect(await kept(ctx)).toEqual({ 0: [1, 2] })
  })

  it('for a row in the middle that one cursor alone has not passed', async () => {
    const { ctx } = await arrangeOld()
    const { primary } = ctx.databases
    const late = connect(ctx)
    await moveTo(ctx, 0)
    await late.unsafe(`begin; ${insertText(0, 3)}`)
    await append(ctx, 4)
    const other = await SqlCursor.makeAll(primary, 'other')
    for (const cursor of other) await cursor.pass()
    await primary.sql`select holdfast.forget_sink('mail', 'me', 'not needed here')`
    await late.unsafe('commit')
    await moveTo(ctx, 1)
    await age(ctx, 8 * dayMs)
    // 3 has the lower xid: the newest row, which is looked at first, says nothing about it.
    expect(await remove(ctx)).toEqual({ emptied: [], kept: [{ slot: 0, why: 'behind', by: ['other/0'] }] })
    expect(await other[0]?.pass()).toHaveLength(1)
    expect(await remove(ctx)).toEqual({ emptied: [0], kept: [] })
  })

  it('for a sink that has not begun with a shard of it, and while there is no sink at all', async () => {
    const ctx = await arrange()
    await append(ctx, 1, 2)
    await age(ctx, 8 * dayMs)
    await moveTo(ctx, 1)
    expect(await remove(ctx)).toEqual({ emptied: [], kept: [{ slot: 0, why: 'no sinks', by: [] }] })
    await SqlCursor.make(ctx.databases.primary, 'new', 0)
    expect(await remove(ctx)).toEqual({ emptied: [], kept: [{ slot: 0, why: 'behind', by: ['new/2'] }] })
    expect(await kept(ctx)).toEqual({ 0: [1] })
  })

  it('for rows in doubt, and for the row when it has committed', async () => {
    const { ctx, cursors } = await arrangeOld()
    await moveTo(ctx, 0)
    await beginDistributed(ctx, 'late', (tx) => tx.unsafe(insertText(0, 3)).then(() => null))
    await moveTo(ctx, 1)
    const [gid] = await preparedGids(ctx)
    const { emptied, kept: stays } = await remove(ctx)
    expect(emptied).toEqual([])
    expect(stays).toEqual([{ slot: 0, why: 'in doubt', by: [expect.stringMatching(/^hf1.+ \(xid \d+\)$/)] }])
    expect(stays[0]?.by[0]).toContain(gid)
    await commitDistributed(ctx, 'late')
    // It is young by now, and nobody has got it.
    await age(ctx, 8 * dayMs)
    expect(await remove(ctx)).toEqual({ emptied: [], kept: [{ slot: 0, why: 'behind', by: ['mail/0'] }] })
    expect(await kept(ctx)).toEqual({ 0: [1, 2, 3] })
    expect(await cursors[0]?.pass()).toHaveLength(1)
    expect(await remove(ctx)).toEqual({ emptied: [0], kept: [] })
  })

  it('for what a restored database says nothing about', async () => {
    const { ctx, cursors } = await arrangeOld()
    await moveTo(ctx, 0)
    // Xids have begun anew: to the base of the cursor the new one looks like one of long ago.
    const id = await append(ctx, 3)
    await ctx.databases.primary.sql`update holdfast.outbox set xid = '5' where id = ${id}`
    await moveTo(ctx, 1)
    await age(ctx, 8 * dayMs)
    const base = (await cursors[0]?.position())?.target ?? ''
    await ctx.databases.primary.sql`
      update holdfast.outbox_positions set base = ${base}::text::pg_snapshot, base_sequence = 2`
    const [row] = await ctx.databases.primary.sql`
      select holdfast.outbox_passed(p, ${id}, '5') as passed from holdfast.outbox_positions p
      where shard = 0 order by no desc limit 1`
    expect(row).toEqual({ passed: true })
    expect(await remove(ctx)).toEqual({ emptied: [], kept: [{ slot: 0, why: 'behind', by: ['mail/0'] }] })
  })
})

describe('between the look and the lock', () => {
  it('nothing happens: it goes', async () => {
    const { ctx } = await arrangeOld()
    expect(await emptySlot(ctx.databases.primary, 0, await look(ctx))).toBe('emptied')
    expect(await kept(ctx)).toEqual({})
  })

  it('a row that was in doubt commits: it stays, though every cursor has passed what is newer', async () => {
    const { ctx, cursors } = await arrangeOld()
    await moveTo(ctx, 0)
    await beginDistributed(ctx, 'late', (tx) => tx.unsafe(insertText(0, 3)).then(() => null))
    await append(ctx, 4)
    await age(ctx, 8 * dayMs)
    await moveTo(ctx, 1)
    for (const cursor of cursors) await cursor.pass()
    const before = await look(ctx)
    expect(await emptySlot(ctx.databases.primary, 0, before)).toBe('locked')
    await commitDistributed(ctx, 'late')
    expect(await emptySlot(ctx.databases.primary, 0, before)).toBe('changed')
    expect(await cursors[0]?.pass()).toHaveLength(1)
  })

  it('or while it waits for the lock: what is asked is asked after that', async () => {
    const { ctx, cursors } = await arrangeOld()
    const { primary } = ctx.databases
    await moveTo(ctx, 0)
    await beginDistributed(ctx, 'late', (tx) => tx.unsafe(insertText(0, 3)).then(() => null))
    await append(ctx, 4)
    await age(ctx, 8 * dayMs)
    await moveTo(ctx, 1)
    for (const cursor of cursors) await cursor.pass()
    const emptying = emptySlot(primary, 0, await look(ctx), 60_000)
    const waits = async () =>
      (
        await primary.sql`select 1 from pg_locks where relation = 'holdfast.outbox_0'::regclass and not granted`
      ).length
    await expect.poll(waits, { interval: 20 }).toBe(1)
    await commitDistributed(ctx, 'late')
    expect(await emptying).toBe('changed')
    expect(await cursors[0]?.pass()).toHaveLength(1)
  })

  it('a row comes and is passed as well: it stays, the row is young', async () => {
    const { ctx, cursors } = await arrangeOld()
    const before = await look(ctx)
    await moveTo(ctx, 0)
    await append(ctx, 3)
    await moveTo(ctx, 1)
    await cursors[0]?.pass()
    expect(await emptySlot(ctx.databases.primary, 0, before)).toBe('changed')
  })

  it('a cursor turns back: it stays', async () => {
    const { ctx, cursors } = await arrangeOld()
    const before = await look(ctx)
    await cursors[1]?.turnTo('replay')
    expect(await emptySlot(ctx.databases.primary, 0, before)).toEqual({ behind: ['mail/1'] })
  })

  it('a sink is made, or forgotten and made anew: it stays, however far that has come', async () => {
    const { ctx } = await arrangeOld()
    const { primary } = ctx.databases
    const before = await look(ctx)
    const made = await SqlCursor.makeAll(primary, 'new')
    expect(await emptySlot(primary, 0, before)).toEqual({ behind: ['new/0', 'new/1'] })
    for (const cursor of made) await cursor.pass()
    expect(await emptySlot(primary, 0, before)).toBe('changed')
    const between = await look(ctx)
    await primary.sql`select holdfast.forget_sink('new', 'me', 'to begin anew')`
    for (const cursor of await SqlCursor.makeAll(primary, 'new')) await cursor.pass()
    expect(await emptySlot(primary, 0, between)).toBe('changed')
  })
})

describe('new rows', () => {
  it('go on to an empty slot when the current one has a sixth of the retention in it', async () => {
    const { ctx } = await arrangeOld()
    await append(ctx, 3)
    await moveTo(ctx, 2)
    await append(ctx, 4)
    await moveTo(ctx, 7)
    await append(ctx, 5)
    await remove(ctx, { ...week, outboxMs: 30 * dayMs })
    await append(ctx, 6)
    expect(await kept(ctx)).toEqual({ 0: [1, 2], 1: [3], 2: [4], 7: [5, 6] })
    await age(ctx, dayMs * 5.1)
    await remove(ctx, { ...week, outboxMs: 30 * dayMs })
    await append(ctx, 7)
    expect(await kept(ctx)).toEqual({ 0: [1, 2], 1: [3], 2: [4], 3: [7], 7: [5, 6] })
  })

  it('stay where they are while no slot is empty, and the ring turns again when one is', async () => {
    const ctx = await arrange()
    for (const slot of slots) {
      await moveTo(ctx, slot)
      await append(ctx, slot)
    }
    await age(ctx, 8 * dayMs)
    expect((await remove(ctx)).kept).toHaveLength(7)
    await append(ctx, 8)
    expect((await kept(ctx))[7]).toEqual([7, 8])
    for (const cursor of await SqlCursor.makeAll(ctx.databases.primary, 'mail')) await cursor.pass()
    expect(await remove(ctx)).toEqual({ emptied: [0, 1, 2, 3, 4, 5, 6], kept: [] })
    await append(ctx, 9)
    expect(await kept(ctx)).toEqual({ 0: [9], 7: [7, 8] })
  })
})

describe('a reader of the slot', () => {
  it('is not waited for for long: others come through meanwhile, and the slot goes when he has ended', async () => {
    const { ctx } = await arrangeOld()
    const [holder, reader, writer] = [connect(ctx), connect(ctx), connect(ctx)]
    await holder.unsafe('begin; select 1 from holdfast.outbox limit 1')
    const [pid] = await holder<{ pid: number }[]>`select pg_backend_pid() as pid`
    for (const sql of [reader, writer]) await sql.unsafe(`set lock_timeout = '1s'`)
    const done = new AbortController()
    const removing = remove(ctx).finally(() => done.abort())
    // Each waits behind the request for the lock at most as long as that waits itself; a writer not at all.
    let rounds = 0
    while (!done.signal.aborted) {
      await Promise.all([reader`select count(*) from holdfast.outbox`, writer.unsafe(insertText(0, 3))])
      rounds++
    }
    // The other reader may hold it for a moment as well.
    expect(await removing).toEqual({
      emptied: [],
      kept: [{ slot: 0, why: 'locked', by: expect.arrayContaining([`pid ${pid?.pid}`]) }],
    })
    expect(rounds).toBeGreaterThan(3)
    await holder.unsafe('commit')
    expect(await remove(ctx)).toEqual({ emptied: [0], kept: [] })
  })
})

describe('what is kept for longer than a day beyond its retention', () => {
  it('is an alert', async () => {
    const { ctx } = await arrangeOld()
    await SqlCursor.makeAll(ctx.databases.primary, 'gone')
    const raised = vi.spyOn(ctx.alerts, 'raise')
    await age(ctx, -hourMs)
    await remove(ctx)
    expect(raised).not.toHaveBeenCalled()
    await age(ctx, 2 * hourMs)
    await remove(ctx)
    expect(raised).toHaveBeenCalledExactlyOnceWith({
      kind: 'outbox_kept',
      subject: 'outbox slot 0',
      message: expect.stringContaining('gone/0, gone/1'),
    })
  })
})

describe('with it go', () => {
  it('what was done by hand long ago, and old snapshots but for the newest', async () => {
    const { ctx } = await arrangeOld()
    const { sql } = ctx.databases.primary
    for (const days of [1, 2])
      await sql`insert into holdfast.outbox_actions (at, action, sink, actor, reason)
        values (clock_timestamp() - make_interval(hours => ${days * 24 - 1}), 'redrive', 'mail', 'me', ${days})`
    for (const days of [1, 6, 8, 9, 10])
      await sql`insert into holdfast.outbox_snapshots (at, snapshot, sequence, floor)
        values (clock_timestamp() - make_interval(days => ${days}), '3:3:', ${days}, 0)`
    await remove(ctx)
    expect(await sql`select reason from holdfast.outbox_actions`).toEqual([{ reason: '1' }])
    const left = await sql<
      { sequence: string }[]
    >`select sequence from holdfast.outbox_snapshots order by at desc`
    expect(left.map(({ sequence }) => Number(sequence))).toEqual([1, 6, 8])
  })
})

describe('while everybody writes', () => {
  it('nothing is lost that one sink has not got, whatever is prepared, commits late and is removed', async () => {
    const ctx = await arrange()
    const { primary } = ctx.databases
    const cursors = [...(await SqlCursor.makeAll(primary, 'a')), ...(await SqlCursor.makeAll(primary, 'b'))]
    const got = { a: new Set<string>(), b: new Set<string>() }
    const committed = new Set<string>()
    const rounds = 50
    const emptied: number[] = []
    const done = new AbortController()

    const write = async (writer: number) => {
      const sql = connect(ctx)
      const inDoubt: { gid: string; id: string }[] = []
      const finish = async () => {
        const { gid, id } = inDoubt.shift() ?? { gid: '', id: '' }
        await sql.unsafe(`commit prepared '${gid}'`)
        committed.add(id)
      }
      for (let round = 0; round < rounds || emptied.length < 20; round++) {
        const shard = (writer + round) % 4
        if (round % 5 === 4) {
          const gid = `ring_${ctx.installation}_${writer}_${round}`
          await sql.unsafe('begin')
          const [row] = await sql.unsafe<{ id: string }[]>(insertText(shard, round))
          await sql.unsafe(`prepare transaction '${gid}'`)
          inDoubt.push({ gid, id: row?.id ?? '' })
        } else {
          const [row] = await sql.unsafe<{ id: string }[]>(insertText(shard, round))
          committed.add(row?.id ?? '')
        }
        if (inDoubt.length > 1) await finish()
      }
      while (inDoubt.length > 0) await finish()
    }
    const passAll = async () => {
      for (const cursor of cursors) {
        for (const id of await cursor.pass()) got[cursor.sink as 'a' | 'b'].add(id)
      }
    }
    const tiny = { ...week, outboxMs: 1 }
    const relaying = async () => {
      while (!done.signal.aborted) await passAll()
    }
    const removing = async () => {
      while (!done.signal.aborted) emptied.push(...(await remove(ctx, tiny)).emptied)
    }
    const background = [relaying(), removing()]
    // Whichever fails first.
    const failed = Promise.all(background)
    try {
      await Promise.race([Promise.all([0, 1, 2, 3].map(write)), failed])
    } finally {
      done.abort()
      await failed
    }
    await passAll()
    expect(committed.size).toBeGreaterThanOrEqual(4 * rounds)
    expect(got.a).toEqual(committed)
    expect(got.b).toEqual(committed)
    await expect.poll(async () => (await remove(ctx, tiny)).kept).toEqual([])
    await expect.poll(async () => remove(ctx, tiny).then(() => kept(ctx))).toEqual({})
  })
})

describe('the migration to the ring', () => {
  it('keeps the rows, their ids and xids, and the sequence', async () => {
    const sql = createClient(await newDatabase(), { max: 1 })
    onTestFinished(() => sql.end())
    const folder = new URL('../../src/db/migrations/', import.meta.url)
    const texts = readdirSync(folder)
      .toSorted()
      .map((file) => ({ file, text: readFileSync(new URL(file, folder), 'utf8') }))
    await sql.unsafe('create schema holdfast')
    for (const { text } of texts.filter(({ file }) => file < '0008')) await sql.unsafe(text)
    for (const n of [1, 2])
      await sql`insert into holdfast.outbox (shard, event_id, source, type, subject, partitionkey, time, data, headers)
        values (${n}, gen_random_uuid(), '/ü"', 'test.counted', ${n === 1 ? 'a' : null}, ${n === 1 ? 'a' : null},
          '2026-01-01 00:00:00.5+00', ${n === 1 ? sql.json({ n, text: '"' }) : null},
          ${sql.json(n === 1 ? {} : { traceparent: '00-1', CC: 'left out, as it always was', id: 'x' })})`
    const rows = () => sql`
      select id, xid, shard, event_id, type, partitionkey, created_at from holdfast.outbox order by id`
    const before = await rows()
    for (const { text } of texts.filter(({ file }) => file >= '0008')) await sql.unsafe(text)
    expect(await rows()).toEqual(before)
    const common = {
      specversion: '1.0',
      source: '/ü"',
      type: 'test.counted',
      datacontenttype: 'application/json',
    }
    const events = await sql<{ event: string; time: string }[]>`
      select event, to_json('2026-01-01 00:00:00.5+00'::timestamptz) #>> '{}' as time from holdfast.outbox order by id`
    expect(events.map(({ event }) => JSON.parse(event) as unknown)).toEqual([
      {
        ...common,
        id: before[0]?.event_id,
        subject: 'a',
        partitionkey: 'a',
        time: events[0]?.time,
        data: { n: 1, text: '"' },
      },
      { ...common, id: before[1]?.event_id, time: events[1]?.time, traceparent: '00-1', data: null },
    ])
    expect(await sql.unsafe(insertText(0, 3))).toEqual([{ id: '3' }])
    expect(
      await sql`select pg_get_serial_sequence('holdfast.outbox', 'id') as ids,
        (select array_agg(distinct slot) from holdfast.outbox) as slots,
        (select count(*)::int from pg_indexes where schemaname = 'holdfast' and tablename ~ '^outbox_[0-9]$'
          and indexdef like '%btree (shard, xid)') as indexes`,
    ).toEqual([{ ids: 'holdfast.outbox_id', slots: [0], indexes: 8 }])
  })
})

describe('readSlots', () => {
  it('tells the ages of the first and the last row of each slot', async () => {
    const { ctx } = await arrangeOld()
    await append(ctx, 3)
    const found = await ctx.databases.primary.transaction(readSlots)
    expect(found.map(({ slot, current }) => [slot, current])).toEqual(slots.map((slot) => [slot, slot === 1]))
    expect(found[0]?.youngestMs).toBeGreaterThan(8 * dayMs)
    expect(found[1]?.oldestMs).toBeLessThan(dayMs)
    expect(found[2]).toMatchObject({ oldestMs: null, youngestMs: null })
  })
})
