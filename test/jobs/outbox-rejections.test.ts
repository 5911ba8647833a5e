import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { RejectedEventError, SinkUnavailableError } from '../../src/db/errors.ts'
import { discardParked, redriveParked } from '../../src/db/outbox-actions.ts'
import { findOther } from '../../src/db/outbox-epochs.ts'
import type { JobContext } from '../../src/jobs/context.ts'
import type { SinkSpec } from '../../src/jobs/sinks/define-sink.ts'
import { newDatabases, openContext } from '../support/database.ts'
import {
  append,
  appendTogether,
  hand,
  holdAt,
  keysBesides,
  makeDue,
  parked,
  putOffRetries,
  shardOf,
} from '../support/outbox-relay.ts'
import { preparedGids } from '../support/prepared-gids.ts'
import { Receiver } from '../support/receiver.ts'
import { Relays } from '../support/relays.ts'

const signal = new AbortController().signal
const upTo = (n: number) => Array.from({ length: n }, (_, i) => i + 1)

async function open(spec: Partial<SinkSpec> = {}, pageSize = 10) {
  const ctx = await openContext(await newDatabases())
  await putOffRetries(ctx)
  const receiver = await Receiver.create(ctx)
  const relay = await relayTo(ctx, receiver, spec, pageSize)
  return { ctx, receiver, relay, drain: () => relay.drain(signal) }
}

async function relayTo(ctx: JobContext, receiver: Receiver, spec: Partial<SinkSpec> = {}, pageSize = 10) {
  const sink = receiver.sink(spec)
  return new Relays(ctx, await receiver.open(spec), {
    sink: 'sink',
    pageSize,
    wants: () => true,
    ...(sink.policy ? { policy: sink.policy } : {}),
    ...(sink.maxEventBytes === undefined ? {} : { maxEventBytes: sink.maxEventBytes }),
  })
}

describe('park', () => {
  it('holds the rest of the key and nothing else; healed and due, the key comes in its order', async () => {
    const { ctx, receiver, drain } = await open()
    receiver.reject(2)
    const { same, other } = await keysBesides(ctx, 'a')
    for (const n of upTo(4)) {
      await append(ctx, 'a', n)
      await append(ctx, same, n + 10)
      await append(ctx, other, n + 20)
      await append(ctx, null, n + 30)
    }
    expect(await drain()).toMatchObject({ outcome: 'idle', published: 13 })
    await append(ctx, 'a', 5)
    await drain()
    expect(await receiver.numbers('a')).toEqual([1])
    expect(await receiver.numbers(same)).toEqual([11, 12, 13, 14])
    expect(await receiver.numbers(other)).toEqual([21, 22, 23, 24])
    expect((await receiver.numbers(null)).toSorted((a, b) => a - b)).toEqual([31, 32, 33, 34])
    expect(await parked(ctx)).toMatchObject([
      {
        n: 2,
        key: 'a',
        attempts: 1,
        reasons: ['2 is refused for now'],
        dead: false,
        due: false,
        holds: true,
      },
      { n: 3, attempts: 0, reasons: [], dead: false, due: null, holds: true },
      { n: 4, attempts: 0, due: null },
      { n: 5, attempts: 0, due: null },
    ])
    receiver.heal()
    await drain()
    expect(await receiver.numbers('a'), 'not due yet').toEqual([1])
    await makeDue(ctx)
    await append(ctx, 'a', 6)
    await drain()
    expect(await receiver.numbers('a')).toEqual(upTo(6))
    expect(await parked(ctx)).toEqual([])
    expect(await preparedGids(ctx)).toEqual([])
  })

  it('counts each rejection, keeps what was said, and gives up after maxAttempts; the key waits', async () => {
    const { ctx, receiver, drain } = await open({ maxAttempts: 3 })
    receiver.reject(1)
    await append(ctx, 'a', 1, 2)
    for (const attempts of [1, 2, 3]) {
      await drain()
      const [head] = await parked(ctx)
      expect(head).toMatchObject({ n: 1, attempts, dead: attempts === 3 })
      expect(head?.reasons).toEqual(Array(attempts).fill('1 is refused for now'))
      await makeDue(ctx)
    }
    receiver.heal()
    await append(ctx, 'a', 3)
    await drain()
    expect(await receiver.received()).toEqual([])
    expect((await parked(ctx)).map(({ n, dead }) => [n, dead])).toEqual([
      [1, true],
      [2, false],
      [3, false],
    ])
    expect(receiver.tried).toEqual(new Map([[1, 3]]))
  })

  it('does not send again what was taken in the attempt that was rolled back', async () => {
    const { ctx, receiver, drain } = await open()
    receiver.reject(3)
    const { same } = await keysBesides(ctx, 'a')
    await appendTogether(ctx, [
      ['a', 1],
      [same, 2],
      ['a', 3],
      ['a', 4],
      [same, 5],
    ])
    await drain()
    expect(await receiver.numbers('a')).toEqual([1])
    expect(await receiver.numbers(same)).toEqual([2, 5])
    expect([...receiver.tried].toSorted(([a], [b]) => a - b)).toEqual([
      [1, 1],
      [2, 1],
      [3, 1],
      [5, 1],
    ])
  })

  it('does neither in the parked list', async () => {
    const { ctx, receiver, drain } = await open()
    receiver.reject(1)
    await append(ctx, 'a', 1, 2, 3, 4)
    await drain()
    receiver.heal()
    receiver.reject(3)
    await makeDue(ctx)
    await drain()
    expect(await receiver.numbers('a')).toEqual([1, 2])
    expect((await parked(ctx)).map(({ n, attempts, due }) => [n, attempts, due])).toEqual([
      [3, 1, false],
      [4, 0, null],
    ])
    expect(receiver.tried.get(2)).toBe(1)
  })

  it('keeps a key behind its rejected event over the pages of a parked list, in one run and after a restart', async () => {
    const { ctx, receiver, drain } = await open({}, 2)
    const { same } = await keysBesides(ctx, 'a')
    receiver.reject(1, 101)
    for (const n of upTo(5)) {
      await append(ctx, 'a', n)
      await append(ctx, same, n + 100)
    }
    await drain()
    receiver.heal()
    receiver.reject(2)
    await makeDue(ctx)
    // Another process goes on after the first page of the list is committed.
    const stop = new AbortController()
    const first = await relayTo(ctx, receiver, {}, 2)
    const one = (await first.all())[await shardOf(ctx, 'a')]!
    const { running, release } = await holdAt('page.committed', () => one.drain(stop.signal))
    stop.abort()
    release()
    expect(await running).toMatchObject({ outcome: 'stopped' })
    expect((await parked(ctx)).length).toBeGreaterThan(2)
    await drain()
    expect(await receiver.numbers('a')).toEqual([1])
    expect(await receiver.numbers(same)).toEqual(upTo(5).map((n) => n + 100))
    receiver.heal()
    await makeDue(ctx)
    await drain()
    expect(await receiver.numbers('a')).toEqual(upTo(5))
  })

  it('what an event without a key meets holds nothing', async () => {
    const { ctx, receiver, drain } = await open({ maxAttempts: 1 })
    receiver.reject(2)
    await append(ctx, null, 1, 2, 3)
    await drain()
    expect((await receiver.numbers(null)).toSorted((a, b) => a - b)).toEqual([1, 3])
    expect(await parked(ctx)).toMatchObject([{ n: 2, dead: true, holds: false }])
  })

  it('afterDead flow lets the key go on', async () => {
    const { ctx, receiver, drain } = await open({ maxAttempts: 2, afterDead: 'flow' })
    receiver.reject(1)
    await append(ctx, 'a', 1, 2)
    await drain()
    expect(await receiver.received()).toEqual([])
    await makeDue(ctx)
    await drain()
    await append(ctx, 'a', 3)
    await drain()
    expect(await receiver.numbers('a')).toEqual([2, 3])
    expect(await parked(ctx)).toMatchObject([{ n: 1, dead: true, holds: false, attempts: 2 }])
  })

  it.each([
    ['a lone half of a character pair', '\ud83d'],
    ['a character that the cut at a thousand halves', `${'x'.repeat(999)}😀`],
    ['the character zero', 'before\0after'],
    ['quotes and backslashes', `it's \\ "so" \\u0000`],
  ])('a reason with %s is recorded, and parks only its key', async (_, reason) => {
    const { ctx, receiver, drain } = await open()
    receiver.before = (n) => {
      if (n === 1) throw new RejectedEventError(reason)
    }
    await append(ctx, 'a', 1)
    await append(ctx, null, 2)
    await drain()
    expect(await receiver.numbers(null)).toEqual([2])
    await makeDue(ctx)
    await drain()
    const [head] = await parked(ctx)
    expect(head).toMatchObject({ n: 1, attempts: 2 })
    expect(head?.reasons).toHaveLength(2)
  })
})

describe('block', () => {
  it('commits what comes before, waits with the shard alone, and goes on when it is healed', async () => {
    const { ctx, receiver, relay, drain } = await open({ onReject: 'block' }, 3)
    const { same, other } = await keysBesides(ctx, 'a')
    receiver.reject(5)
    for (const n of upTo(8)) {
      await append(ctx, n % 2 === 1 ? 'a' : same, n)
      await append(ctx, other, n + 100)
    }
    await expect(drain()).rejects.toThrow(RejectedEventError)
    expect(await receiver.numbers('a')).toEqual([1, 3])
    expect(await receiver.numbers(other)).toEqual(upTo(8).map((n) => n + 100))
    expect(await parked(ctx)).toEqual([])
    expect(await preparedGids(ctx)).toEqual([])
    const [{ n: committed } = { n: 0 }] = await ctx.databases.primary.sql<{ n: number }[]>`
      select count(*)::int as n from holdfast.outbox o where shard = ${await shardOf(ctx, 'a')}
        and id <= (select last_id from holdfast.outbox_positions p where p.shard = o.shard order by no desc limit 1)`
    expect(committed).toBe(4)
    await expect(relay.drain(signal), 'still rejected').rejects.toThrow(RejectedEventError)
    receiver.heal()
    expect(await drain()).toMatchObject({ outcome: 'idle' })
    expect(await receiver.numbers('a')).toEqual([1, 3, 5, 7])
    expect(await receiver.numbers(same)).toEqual([2, 4, 6, 8])
    for (const [n, times] of receiver.tried) if (n !== 5) expect(times, `${n}`).toBe(1)
  })

  it('is healed for another relay as well', async () => {
    const { ctx, receiver, drain } = await open({ onReject: 'block' })
    receiver.reject(2)
    await append(ctx, 'a', 1, 2, 3)
    await expect(drain()).rejects.toThrow(RejectedEventError)
    receiver.heal()
    const heir = await relayTo(ctx, receiver, { onReject: 'block' })
    await heir.drain(signal)
    expect(await receiver.numbers('a')).toEqual([1, 2, 3])
  })

  it('does not send again and again what comes before an event that is too large', async () => {
    const { ctx, receiver, drain } = await open({ onReject: 'block', maxEventBytes: 2_000 }, 1)
    await append(ctx, 'a', 1)
    const { primary } = ctx.databases
    await primary.sql`select holdfast.append_events(json_build_array(json_build_object('id', gen_random_uuid(),
      'source', '/t', 'type', 't', 'partitionkey', 'a', 'time', now(),
      'data', json_build_object('n', 2, 'text', repeat('x', 3000)))))`
    for (let i = 0; i < 3; i++) await expect(drain()).rejects.toThrow(RejectedEventError)
    expect(await receiver.numbers('a')).toEqual([1])
  })
})

describe('skip', () => {
  it('gives the event up at once, and its key flows', async () => {
    const { ctx, receiver, drain } = await open({ onReject: 'skip' })
    receiver.reject(2, 4)
    await append(ctx, 'a', ...upTo(5))
    await append(ctx, null, 6)
    await drain()
    expect(await receiver.numbers('a')).toEqual([1, 3, 5])
    expect(await parked(ctx)).toMatchObject([
      { n: 2, dead: true, holds: false, attempts: 1, reasons: ['2 is refused for now'] },
      { n: 4, dead: true, holds: false, attempts: 1 },
    ])
    for (const times of receiver.tried.values()) expect(times).toBe(1)
  })
})

describe('maxEventBytes', () => {
  const appendLarge = (ctx: JobContext, fields: Record<string, unknown>) => {
    const event = {
      id: crypto.randomUUID(),
      source: '/t',
      type: 't',
      time: new Date(),
      data: { n: 2 },
      ...fields,
    }
    return ctx.databases.primary.sql`select holdfast.append_events(${JSON.stringify([event])}::text::json)`
  }

  it.each([
    ['data', { partitionkey: 'a', data: { n: 2, text: 'x'.repeat(3_000) } }],
    ['subject', { subject: 's'.repeat(2_500), partitionkey: 'a' }],
    ['key', { partitionkey: 'k'.repeat(2_500) }],
    ['type, which JSON escapes', { type: '\u0001'.repeat(500), partitionkey: 'a' }],
  ])('what is larger for its %s is dead without being sent', async (_, fields) => {
    const { ctx, receiver, drain } = await open({ maxEventBytes: 2_000 })
    await append(ctx, 'a', 1)
    await appendLarge(ctx, fields)
    await append(ctx, null, 3)
    await drain()
    const large = await parked(ctx)
    expect(receiver.tried.get(2)).toBeUndefined()
    expect(large).toMatchObject([{ n: 2, dead: true, attempts: 1 }])
    expect(large[0]?.reasons[0]).toMatch(/^takes \d+ bytes, the sink 2000 at most$/)
    expect((await receiver.received()).map(({ n }) => n).toSorted((a, b) => a - b)).toEqual([1, 3])
  })
})

describe('by hand', () => {
  async function withDead(keys: readonly string[], spec: Partial<SinkSpec> = {}) {
    const opened = await open({ maxAttempts: 1, ...spec })
    const { ctx, receiver, drain } = opened
    receiver.reject(1)
    for (const key of keys) await append(ctx, key, 1, 2, 3)
    await drain()
    return opened
  }

  it('a redriven event comes first, then what waited behind it', async () => {
    const { ctx, receiver, drain } = await withDead(['a'])
    await append(ctx, 'a', 4)
    receiver.heal()
    await drain()
    expect(await receiver.received()).toEqual([])
    expect(await redriveParked(ctx.databases.primary, 'sink', hand)).toBe(1)
    await append(ctx, 'a', 5)
    await drain()
    expect(await receiver.numbers('a')).toEqual(upTo(5))
    expect(await parked(ctx)).toEqual([])
  })

  it('a redriven one that is rejected again begins with its first attempt', async () => {
    const { ctx, drain } = await withDead(['a'])
    await redriveParked(ctx.databases.primary, 'sink', hand)
    await drain()
    expect(await parked(ctx)).toMatchObject([{ n: 1, dead: true, attempts: 1 }, { n: 2 }, { n: 3 }])
  })

  it('a discarded one is gone, and the rest of its key goes on', async () => {
    const { ctx, receiver, drain } = await withDead(['a', 'b'])
    expect(await discardParked(ctx.databases.primary, 'sink', hand)).toBe(2)
    await append(ctx, 'a', 4)
    await drain()
    expect(await receiver.numbers('a')).toEqual([2, 3, 4])
    expect(await receiver.numbers('b')).toEqual([2, 3])
    expect(await parked(ctx)).toEqual([])
  })

  it('only those that are named', async () => {
    const { ctx, receiver, drain } = await withDead(['a', 'b'])
    const [row] = await ctx.databases.primary.sql<{ id: string }[]>`
      select event_id as id from holdfast.outbox_parked where partitionkey = 'b' and dead_at is not null`
    await discardParked(ctx.databases.primary, 'sink', { ...hand, events: [row?.id ?? ''] })
    await drain()
    expect(await receiver.numbers('a')).toEqual([])
    expect(await receiver.numbers('b')).toEqual([2, 3])
  })

  it('a skipped one that is redriven holds what comes later until it is delivered', async () => {
    const { ctx, receiver, drain } = await withDead(['a'], { onReject: 'skip' })
    expect(await receiver.numbers('a')).toEqual([2, 3])
    receiver.heal()
    await redriveParked(ctx.databases.primary, 'sink', hand)
    await append(ctx, 'a', 4)
    await drain()
    expect(await receiver.numbers('a')).toEqual([2, 3, 1, 4])
  })

  it('what waits behind a dead event is not looked for again and again', async () => {
    // Two that were skipped, redriven after the policy became park: the first one dies, and the second one was due.
    const { ctx, receiver, drain } = await open({ onReject: 'skip' })
    receiver.reject(1, 2)
    await append(ctx, 'a', 1, 2)
    await drain()
    await redriveParked(ctx.databases.primary, 'sink', hand)
    receiver.rejects.set(1, 'for good')
    const patient = await relayTo(ctx, receiver, { onReject: 'park' })
    await patient.drain(signal)
    expect(await parked(ctx)).toMatchObject([
      { n: 1, dead: true, holds: true },
      { n: 2, dead: false },
    ])
    expect(await findOther(ctx.databases.primary.sql, ['sink'])).toEqual([])
  })

  it.each(['page.prepared', 'page.published'] as const)(
    'while a relay holds its page at %s: waits for the cursor’s lock; nothing is lost or doubled',
    async (step) => {
      const { ctx, receiver, relay } = await withDead(['a'])
      receiver.heal()
      await append(ctx, 'b', ...upTo(3))
      await append(ctx, 'a', 4)
      const shard = await shardOf(ctx, 'a')
      const { same } = await keysBesides(ctx, 'a')
      await append(ctx, same, 7)
      const one = (await relay.all())[shard]!
      const { running, release } = await holdAt(step, () => one.drain(signal))
      const redriving = redriveParked(ctx.databases.primary, 'sink', hand)
      await expect
        .poll(
          async () =>
            (
              await ctx.databases.primary.sql`select 1 from pg_stat_activity where wait_event_type = 'Lock'
              and datname = current_database() and query like '%redrive_parked%'`
            ).length,
        )
        .toBe(1)
      release()
      expect(await redriving).toBe(1)
      // It may have stepped back; whoever comes next goes on.
      await running
      await relay.drain(signal)
      expect(await receiver.numbers('a')).toEqual(upTo(4))
      expect(await receiver.numbers('b')).toEqual(upTo(3))
      expect(await receiver.numbers(same)).toEqual([7])
      expect(await parked(ctx)).toEqual([])
      expect(await preparedGids(ctx)).toEqual([])
    },
  )

  it('between two pages of a relay: the relay steps back, and what it knew of held keys is not acted on', async () => {
    const { ctx, receiver, relay } = await open({ maxAttempts: 1 }, 1)
    receiver.reject(1)
    await append(ctx, 'a', 1)
    await relay.drain(signal)
    receiver.heal()
    const { same } = await keysBesides(ctx, 'a')
    await appendTogether(ctx, [
      [same, 7],
      ['a', 2],
      ['a', 3],
    ])
    const one = (await relay.all())[await shardOf(ctx, 'a')]!
    const { running, release } = await holdAt('page.committed', () => one.drain(signal))
    await redriveParked(ctx.databases.primary, 'sink', hand)
    release()
    expect(await running).toMatchObject({ outcome: 'stepped-back' })
    await relay.drain(signal)
    expect(await receiver.numbers('a')).toEqual([1, 2, 3])
    expect(await receiver.numbers(same)).toEqual([7])
  })
})

describe('a sink that stops in the middle of a page', () => {
  it('is not sent again by the same relay what it took', async () => {
    const { ctx, receiver, drain } = await open({ concurrency: 1 })
    const { same } = await keysBesides(ctx, 'a')
    await appendTogether(ctx, [
      ['a', 1],
      ['a', 2],
      [same, 3],
      [same, 4],
    ])
    receiver.before = (n) => {
      if (n === 4) throw new Error('the line is cut')
    }
    await expect(drain()).rejects.toThrow(SinkUnavailableError)
    expect(await preparedGids(ctx)).toEqual([])
    receiver.before = () => undefined
    await drain()
    expect(await receiver.numbers('a')).toEqual([1, 2])
    expect(await receiver.numbers(same)).toEqual([3, 4])
    expect(receiver.tried).toEqual(
      new Map([
        [1, 1],
        [2, 1],
        [3, 1],
        [4, 2],
      ]),
    )
  })

  it('nor what it had rejected before it stopped', async () => {
    const { ctx, receiver, drain } = await open({ concurrency: 1 })
    const { same } = await keysBesides(ctx, 'a')
    await appendTogether(ctx, [
      ['a', 1],
      ['a', 2],
      [same, 3],
    ])
    receiver.reject(1)
    receiver.before = (n) => {
      if (n === 3) throw new Error('the line is cut')
    }
    await expect(drain()).rejects.toThrow(SinkUnavailableError)
    receiver.before = () => undefined
    await drain()
    expect(await receiver.numbers(same)).toEqual([3])
    expect(receiver.tried.get(1)).toBe(1)
    expect((await parked(ctx)).map(({ n, attempts }) => [n, attempts])).toEqual([
      [1, 1],
      [2, 0],
    ])
  })
})

describe('whatever happens', () => {
  it('all that was not discarded is delivered, the first deliveries of a key in its order', async () => {
    const ctx = await openContext(await newDatabases())
    const receiver = await Receiver.create(ctx)
    const keys = ['a', 'b', 'c', null]
    const step = fc.oneof(
      { weight: 4, arbitrary: fc.record({ what: fc.constant('append'), of: fc.nat(keys.length - 1) }) },
      { weight: 2, arbitrary: fc.record({ what: fc.constant('append many'), of: fc.nat(keys.length - 1) }) },
      { weight: 2, arbitrary: fc.record({ what: fc.constant('reject'), of: fc.nat(20) }) },
      { weight: 1, arbitrary: fc.record({ what: fc.constant('reject for good'), of: fc.nat(20) }) },
      { weight: 1, arbitrary: fc.record({ what: fc.constant('heal'), of: fc.nat(20) }) },
      { weight: 4, arbitrary: fc.record({ what: fc.constant('drain'), of: fc.nat(1) }) },
      { weight: 2, arbitrary: fc.record({ what: fc.constant('due'), of: fc.constant(0) }) },
      { weight: 1, arbitrary: fc.record({ what: fc.constant('redrive'), of: fc.constant(0) }) },
      { weight: 1, arbitrary: fc.record({ what: fc.constant('discard'), of: fc.nat(20) }) },
      { weight: 1, arbitrary: fc.record({ what: fc.constant('restart'), of: fc.constant(0) }) },
      { weight: 1, arbitrary: fc.record({ what: fc.constant('cut'), of: fc.nat(20) }) },
    )
    let serial = 0
    const { primary } = ctx.databases
    const spec = { maxAttempts: 2 }
    await fc.assert(
      fc.asyncProperty(fc.array(step, { minLength: 10, maxLength: 35 }), async (steps) => {
        const begun = serial
        const appended = new Map<number, string | null>()
        const discarded = new Set<number>()
        const add = async (key: string | null, count: number) => {
          const events = Array.from({ length: count }, () => [key, ++serial] as const)
          for (const [, n] of events) appended.set(n, key)
          await appendTogether(ctx, events)
        }
        // Of the recent ones, so that a rejection meets what is not delivered yet, or only comes.
        const recent = (of: number) => Math.max(begun + 1, serial - 5 + of)
        let cut: number | undefined
        receiver.before = (n) => {
          if (n === cut) throw new Error('the line is cut')
        }
        let relay = await relayTo(ctx, receiver, spec, 3)
        for (const { what, of } of steps) {
          if (what === 'append') await add(keys[of] ?? null, 1)
          else if (what === 'append many') await add(keys[of] ?? null, 4)
          else if (what === 'reject') receiver.rejects.set(recent(of), 'for now')
          else if (what === 'reject for good') receiver.rejects.set(recent(of), 'for good')
          else if (what === 'heal') receiver.heal()
          else if (what === 'due') await makeDue(ctx)
          else if (what === 'restart') relay = await relayTo(ctx, receiver, spec, 3)
          else if (what === 'cut') cut = recent(of)
          else if (what === 'drain') {
            await relay
              .drain(signal)
              .catch((error: unknown) => expect(error).toBeInstanceOf(SinkUnavailableError))
            cut = undefined
          } else if ((await parked(ctx)).length > 0) {
            const dead = (await parked(ctx)).filter((row) => row.dead)
            if (what === 'redrive') expect(await redriveParked(primary, 'sink', hand)).toBe(dead.length)
            else {
              await discardParked(primary, 'sink', hand)
              for (const { n } of dead) discarded.add(n)
            }
          }
        }
        receiver.heal()
        receiver.before = () => undefined
        await relay.drain(signal)
        if ((await parked(ctx)).length > 0) await redriveParked(primary, 'sink', hand)
        await makeDue(ctx)
        await relay.drain(signal)
        expect(await parked(ctx)).toEqual([])
        const firsts = new Set((await receiver.received()).filter(({ n }) => n > begun).map(({ n }) => n))
        for (const key of keys) {
          const wanted = [...appended].filter(([n, of]) => of === key && !discarded.has(n)).map(([n]) => n)
          const got = [...firsts].filter((n) => appended.get(n) === key)
          expect(key === null ? got.toSorted((a, b) => a - b) : got).toEqual(wanted)
        }
        expect(await preparedGids(ctx)).toEqual([])
      }),
      { numRuns: 25 },
    )
  })
})
