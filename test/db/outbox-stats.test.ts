import { randomUUID } from 'node:crypto'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import type { Limits, Sql } from '../../src/db/databases.ts'
import { appendEvents } from '../../src/db/outbox.ts'
import { backlogText } from '../../src/db/outbox-backlog.ts'
import { listParked, readOutboxStats, readStandings } from '../../src/db/outbox-stats.ts'
import { beginDistributed } from '../../src/jobs/begin.ts'
import type { JobContext } from '../../src/jobs/context.ts'
import { commitDistributed, rollbackDistributed } from '../../src/jobs/coordinator.ts'
import { newDatabases, openContext } from '../support/database.ts'
import { HandCursor } from '../support/outbox-cursor.ts'

const event = { type: 'test.counted', subject: 'a' }

async function open(limits?: Partial<Limits>) {
  const ctx = await openContext(await newDatabases(), limits)
  const { sql } = ctx.databases.primary
  const [row] = await sql<{ shard: number }[]>`select holdfast.outbox_shard('a', ${randomUUID()}) as shard`
  const cursor = await HandCursor.create(sql, 'orders', row!.shard)
  return { ctx, sql, cursor }
}

const append = (ctx: JobContext, count = 1) =>
  ctx.databases.primary.transaction((tx) =>
    appendEvents(
      tx,
      Array.from({ length: count }, () => event),
    ),
  )
const idsOf = async (sql: Sql) =>
  (await sql<{ id: string }[]>`select id from holdfast.outbox order by id`).map((row) => row.id)

async function statsOf(sql: Sql, bound?: number) {
  const { cursors } = await readOutboxStats(sql, bound)
  expect(cursors).toHaveLength(1)
  return cursors[0]!
}
const backlog = async (sql: Sql) => (await statsOf(sql)).backlog

describe('the backlog', () => {
  it('leaves out what is in doubt until it commits, and has late events although their ids are passed', async () => {
    const { ctx, sql, cursor } = await open()
    await beginDistributed(ctx, 'late', (tx) => appendEvents(tx, event))
    await beginDistributed(ctx, 'later', (tx) => appendEvents(tx, event))
    await append(ctx)
    expect(await backlog(sql)).toBe(1)
    await cursor.startEpoch()
    expect(await backlog(sql)).toBe(1)
    await cursor.advance('3')
    expect(await statsOf(sql)).toMatchObject({
      backlog: 0,
      backlogIsAtLeast: false,
      oldestUnpublishedSeconds: 0,
    })
    await commitDistributed(ctx, 'late')
    expect(await backlog(sql)).toBe(1)
    await append(ctx)
    await cursor.startEpoch()
    expect(await backlog(sql)).toBe(2)
    await cursor.advance('1')
    expect(await backlog(sql)).toBe(1)
    await commitDistributed(ctx, 'later')
    expect(await backlog(sql)).toBe(2)
    await cursor.advance('4')
    expect(await backlog(sql)).toBe(1)
  })

  it('is what the schema says is not passed, whatever commits, rolls back and moves in whatever order', async () => {
    const { ctx, sql, cursor } = await open()
    const open_: string[] = []
    let names = 0
    const steps = {
      append: () => append(ctx, 2),
      begin: async () => {
        open_.push(`in-doubt-${++names}`)
        await beginDistributed(ctx, `in-doubt-${names}`, (tx) => appendEvents(tx, event))
      },
      commit: async () => {
        const name = open_.shift()
        if (name !== undefined) await commitDistributed(ctx, name)
      },
      rollback: async () => {
        const name = open_.pop()
        if (name !== undefined) await rollbackDistributed(ctx, name, 'test')
      },
      epoch: () => cursor.startEpoch(),
      // One event of the list, as the relay reads it.
      advance: async () => {
        const { lastId } = await cursor.position()
        const [next] = await sql<{ id: string }[]>`
          select o.id from holdfast.outbox o, holdfast.outbox_positions p
          where p.no = (select max(no) from holdfast.outbox_positions) and o.id > ${lastId}::bigint
            and pg_visible_in_snapshot(o.xid, p.target) and not pg_visible_in_snapshot(o.xid, p.base)
          order by o.id limit 1`
        if (next) await cursor.advance(next.id)
      },
    }
    const names_ = Object.keys(steps) as (keyof typeof steps)[]
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.constantFrom(...names_), { minLength: 20, maxLength: 20 }),
        async (run) => {
          for (const step of run) {
            await steps[step]()
            const [truth] = await sql<{ n: number }[]>`
            select count(*)::int as n from holdfast.outbox o, (select p from holdfast.outbox_positions p order by no desc limit 1) p
            where o.shard = ${cursor.shard} and not holdfast.outbox_passed(p.p, o.id, o.xid)`
            expect(await backlog(sql)).toBe(truth!.n)
          }
        },
      ),
      { numRuns: 10, endOnFailure: true },
    )
    for (const name of open_) await rollbackDistributed(ctx, name, 'test')
  })

  it('ages by its oldest event, and not by those that are passed', async () => {
    const { sql, cursor } = await open()
    for (const hours of [5, 2, 1])
      await sql`
        insert into holdfast.outbox (shard, event_id, type, event, created_at)
        values (${cursor.shard}, gen_random_uuid(), 't', '{}', clock_timestamp() - make_interval(hours => ${hours}))`
    await cursor.startEpoch()
    await cursor.advance('1')
    const { backlog, oldestUnpublishedSeconds } = await statsOf(sql)
    expect(backlog).toBe(2)
    expect(Math.floor(oldestUnpublishedSeconds / 60)).toBe(120)
    const { oldestRowAt, partitions } = await readOutboxStats(sql)
    expect(Math.round((Date.now() - oldestRowAt!.getTime()) / 3_600_000)).toBe(5)
    expect(partitions.map(({ name }) => name)).toContain('outbox_0')
  })

  it('has what a replay sends again, and only that', async () => {
    const { ctx, sql, cursor } = await open()
    await append(ctx, 2)
    const [then] = await sql<{ s: string }[]>`select pg_current_snapshot()::text as s`
    await append(ctx, 3)
    await cursor.startEpoch()
    await cursor.advance('5')
    expect(await backlog(sql)).toBe(0)
    await cursor.startEpoch()
    await cursor.turn('replay', { snapshot: then!.s, floor: '0' })
    expect(await statsOf(sql)).toMatchObject({ backlog: 3, epoch: 'replay' })
    await cursor.advance('3')
    await append(ctx)
    expect(await backlog(sql)).toBe(3)
    await cursor.turn('events')
    expect(await backlog(sql)).toBe(1)
    await cursor.turn('replay', { id: '2' })
    expect(await backlog(sql)).toBe(5)
    await cursor.turn('events')
    await cursor.turn('replay')
    expect(await backlog(sql)).toBe(6)
  })

  it('has, during a rebase and before it, what was not passed before the dump, and all that came since', async () => {
    const { ctx, sql, cursor } = await open()
    // As if xids had been far ahead when the dump was made: those of later rows lie below.
    await sql`
      insert into holdfast.outbox (xid, shard, event_id, type, event)
      select '8000000', ${cursor.shard}, gen_random_uuid(), 't', '{}' from generate_series(1, 4)`
    await cursor.startEpoch()
    await cursor.advance('3')
    await sql`
      insert into holdfast.outbox_positions
      select sink, shard, no + 1, epoch, '7000000:7000000:', '9000000:9000000:', last_id, attempt, at, kind, floor, base_sequence,
        target_sequence, since, since_floor, since_id, generation, system_identifier
      from holdfast.outbox_positions order by no desc limit 1`
    await append(ctx, 2)
    expect(await statsOf(sql)).toMatchObject({ backlog: 3, restored: true })
    await sql`select holdfast.rebase_outbox('orders', 'jo', 'restored')`
    expect(await statsOf(sql)).toMatchObject({ backlog: 3, restored: false, epoch: 'rebase' })
    await append(ctx)
    expect(await backlog(sql)).toBe(4)
    await cursor.advance('5')
    expect(await backlog(sql)).toBe(2)
    await cursor.advance('6')
    await cursor.turn('events')
    // What is settled is not looked at, although its xids are higher than any new one.
    expect(await statsOf(sql, 3)).toMatchObject({ backlog: 1, backlogIsAtLeast: false, epoch: 'events' })
  })
})

describe('a large outbox', () => {
  it('costs the same: an index range of what is not passed, a bounded look at what is', async () => {
    const { sql, cursor } = await open({ answerMs: 600_000 })
    const { shard } = cursor
    // Commits of ten thousand rows each.
    await sql.unsafe(`do $$ begin for i in 1..100 loop
      insert into holdfast.outbox (shard, event_id, type, event)
        select ${shard}, gen_random_uuid(), 't', '{}' from generate_series(1, 10000);
      commit;
    end loop; end $$`)
    const add = () => sql`
      insert into holdfast.outbox (shard, event_id, type, event)
      select ${shard}, gen_random_uuid(), 't', '{}' from generate_series(1, 10)`
    await cursor.startEpoch()
    // A sink that never took anything.
    expect(await statsOf(sql)).toMatchObject({ backlog: 100_000, backlogIsAtLeast: true })
    const [first] = await sql<{ seconds: number }[]>`
      select extract(epoch from clock_timestamp() - min(created_at))::float8 as seconds from holdfast.outbox`
    expect((await statsOf(sql)).oldestUnpublishedSeconds).toBeGreaterThan(first!.seconds)
    await cursor.advance('1000000')
    await add()
    for (const analyze of [false, true]) {
      if (analyze) await sql`analyze holdfast.outbox`
      // The list is at its end, and no next one began.
      expect(await statsOf(sql)).toMatchObject({ backlog: 10, backlogIsAtLeast: false })
      expect(await cost(sql)).toMatchObject({ sequential: false, few: true })
    }
    await cursor.startEpoch()
    await add()
    expect(await statsOf(sql)).toMatchObject({ backlog: 20, backlogIsAtLeast: false })
    expect(await cost(sql)).toMatchObject({ sequential: false, few: true })
    await cursor.advance('1000010')
    expect(await backlog(sql)).toBe(10)
    // In the middle of a long list it is not looked at as a whole.
    const other = await HandCursor.create(sql, 'another', shard)
    await other.startEpoch()
    await other.advance('999990')
    await sql`delete from holdfast.outbox_positions where sink = 'orders'`
    expect(await statsOf(sql, 1_000)).toMatchObject({ sink: 'another', backlog: 30, backlogIsAtLeast: true })
    // What is left of its list was there when the cursor last moved, also what was not looked at.
    await sql`update holdfast.outbox_positions set at = at - interval '1 hour'`
    expect((await statsOf(sql, 1_000)).oldestUnpublishedSeconds).toBeGreaterThan(3_600)
    expect(await cost(sql, 1_000)).toMatchObject({ sequential: false, few: true })
    expect(await cost(sql)).toMatchObject({ sequential: false, few: false })
  })
})

type Node = { 'Node Type': string; Plans?: Node[] } & Record<string, number>

/** How the backlog of the only cursor is read: whether a table with rows from end to end, and whether few pages. */
async function cost(
  sql: Sql,
  bound = 100_000,
): Promise<{ sequential: boolean; few: boolean; buffers: number }> {
  const [standing] = await readStandings(sql)
  const [row] = await sql.unsafe<{ 'QUERY PLAN': [{ Plan: Node }] }[]>(
    `explain (analyze, buffers, format json) ${backlogText(standing!, bound)}`,
  )
  const [{ Plan }] = row!['QUERY PLAN']
  const nodes: Node[] = [Plan]
  for (const node of nodes) nodes.push(...(node.Plans ?? []))
  const read = (node: Node) => node['Actual Rows']! + (node['Rows Removed by Filter'] ?? 0)
  const buffers = Plan['Shared Hit Blocks']! + Plan['Shared Read Blocks']!
  const sequential = nodes.some((node) => node['Node Type'] === 'Seq Scan' && read(node) > 0)
  return { sequential, few: buffers < 200, buffers }
}

describe('of each cursor', () => {
  it('what is parked and dead, the circuit, what it goes through, and a replay that waits', async () => {
    const { sql, cursor } = await open()
    expect(await statsOf(sql)).toMatchObject({
      sink: 'orders',
      shard: cursor.shard,
      parked: 0,
      dead: 0,
      circuit: { state: 'closed', since: null, error: null },
      epoch: 'events',
      replayWaits: false,
      restored: false,
      movedAt: expect.any(Date),
    })
    await cursor.park('a', { dead: true })
    await cursor.park('a')
    await cursor.park('b')
    await sql`
      insert into holdfast.outbox_circuits (sink, shard, state, error, worker)
      values ('orders', ${cursor.shard}, 'open', 'connection refused', 'w')`
    await sql`insert into holdfast.outbox_replays (sink, shard) values ('orders', ${cursor.shard})`
    await cursor.turn('parked')
    expect(await statsOf(sql)).toMatchObject({
      parked: 2,
      dead: 1,
      circuit: { state: 'open', since: expect.any(Date), error: 'connection refused' },
      epoch: 'parked',
      replayWaits: true,
    })
  })
})

describe('listParked', () => {
  it('lists page by page what is dead and what waits, and never the data', async () => {
    const { sql, cursor } = await open()
    const [dead, behind] = [await cursor.park('a', { dead: true }), await cursor.park('a')]
    const other = await HandCursor.create(sql, 'mail', 0)
    const elsewhere = await other.park(null, { dead: true })
    const all = await listParked(sql, { limit: 10 })
    expect(all.map((e) => e.eventId)).toEqual([elsewhere, dead, behind])
    expect(all[1]).toEqual({
      sink: 'orders',
      shard: cursor.shard,
      no: '1',
      eventId: dead,
      type: 'order.placed',
      key: 'a',
      attempts: 10,
      errors: [{ at: expect.any(String), reason: 'no such account' }],
      parkedAt: expect.any(Date),
      retryAt: null,
      deadAt: expect.any(Date),
    })
    const ids = async (filter: object) =>
      (await listParked(sql, { limit: 10, ...filter })).map((e) => e.eventId)
    expect(await ids({ dead: true })).toEqual([elsewhere, dead])
    expect(await ids({ dead: false })).toEqual([behind])
    expect(await ids({ sink: 'orders', dead: true })).toEqual([dead])
    expect(await ids({ limit: 1 })).toEqual([elsewhere])
    expect(await ids({ after: all[0] })).toEqual([dead, behind])
    expect(await ids({ after: all[2] })).toEqual([])
    expect(await idsOf(sql)).toEqual([])
  })
})
