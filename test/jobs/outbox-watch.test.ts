import { describe, expect, it, onTestFinished } from 'vitest'
import { createClient } from '../../src/db/client.ts'
import type { Sql } from '../../src/db/databases.ts'
import { appendEvents } from '../../src/db/outbox.ts'
import { readPresent } from '../../src/db/outbox-cursors.ts'
import { beginDistributed } from '../../src/jobs/begin.ts'
import { Circuit } from '../../src/jobs/circuit.ts'
import type { JobContext } from '../../src/jobs/context.ts'
import { commitDistributed } from '../../src/jobs/coordinator.ts'
import { OutboxWatch } from '../../src/jobs/outbox-watch.ts'
import type { Idle } from '../../src/jobs/publish-outbox.ts'
import { runOutbox } from '../../src/jobs/run-outbox.ts'
import { newDatabases, openContext } from '../support/database.ts'
import { settle } from '../support/fake-clock.ts'
import { append, keysBesides, numberedEvent, shardOf } from '../support/outbox-relay.ts'
import { Receiver } from '../support/receiver.ts'
import { Relays } from '../support/relays.ts'

const hour = 60 * 60 * 1000

/** Counts the looks of a watch, and can hold them where their snapshot is taken or fail them. */
function watched(sql: Sql) {
  const looks = { begun: 0, after: async () => {} }
  const proxy = new Proxy(sql, {
    apply(target, that, args: [TemplateStringsArray, ...unknown[]]) {
      const query: unknown = Reflect.apply(target, that, args)
      if (!args[0].raw?.[0]?.includes('pg_current_snapshot()')) return query
      looks.begun++
      return (query as Promise<unknown>).then(async (rows) => {
        await looks.after()
        return rows
      })
    },
  })
  return { sql: proxy, looks }
}

async function idleCursor(ctx: JobContext, key: string): Promise<Idle> {
  const { snapshot, sequence } = await readPresent(ctx.databases.primary.sql)
  return { sink: 'sink', shard: await shardOf(ctx, key), base: snapshot, sequence, floor: 0n }
}

async function open(pollMs = hour) {
  const ctx = await openContext(await newDatabases())
  const { sql, looks } = watched(ctx.databases.primary.sql)
  const watch = new OutboxWatch(sql, pollMs)
  const stop = new AbortController()
  onTestFinished(() => stop.abort())
  /** Waits, and tells when that has ended. */
  const wait = (idle: Idle, seen = watch.wakes) => {
    const waiting: { ended: boolean; end: Promise<unknown> } = { ended: false, end: Promise.resolve() }
    waiting.end = watch.wait(idle, stop.signal, seen).finally(() => {
      waiting.ended = true
    })
    return waiting
  }
  return { ctx, watch, looks, stop, wait }
}

/** Holds the looks after their snapshot; returns when one is there. */
function holdLook(looks: { after(): Promise<void> }) {
  let release = () => {}
  const held = new Promise<void>((there) => {
    looks.after = () => {
      there()
      return new Promise((go) => {
        release = go
      })
    }
  })
  return {
    held,
    release: () => {
      looks.after = async () => {}
      release()
    },
  }
}

describe('the look-out', () => {
  it('finds what was committed when it is woken, and only those it is for', async () => {
    const { ctx, watch, wait } = await open()
    const { other } = await keysBesides(ctx, 'a')
    const [one, two] = [wait(await idleCursor(ctx, 'a')), wait(await idleCursor(ctx, other))]
    await append(ctx, 'a', 1)
    watch.wake()
    await one.end
    expect(two.ended).toBe(false)
    await append(ctx, other, 2)
    watch.wake()
    await two.end
  })

  it('looks again for a wake-up that comes during a look', async () => {
    const { ctx, watch, looks, wait } = await open()
    const waiting = wait(await idleCursor(ctx, 'a'))
    const { held, release } = holdLook(looks)
    watch.wake()
    await held
    await append(ctx, 'a', 1)
    watch.wake()
    release()
    await waiting.end
    expect(looks.begun).toBe(2)
  })

  it('once for many wake-ups during a look', async () => {
    const { ctx, watch, looks, wait, stop } = await open()
    const waiting = wait(await idleCursor(ctx, 'a'))
    const { held, release } = holdLook(looks)
    watch.wake()
    await held
    for (let i = 0; i < 10; i++) watch.wake()
    release()
    await expect.poll(() => looks.begun).toBe(2)
    await append(ctx, 'a', 1)
    watch.wake()
    await waiting.end
    expect(looks.begun).toBeLessThanOrEqual(4)
    stop.abort()
  })

  it('looks for a wake-up that came after the relay’s own look and before it waits', async () => {
    const { ctx, watch, wait } = await open()
    const seen = watch.wakes
    const idle = await idleCursor(ctx, 'a')
    await append(ctx, 'a', 1)
    watch.wake()
    const waiting = wait(idle, seen)
    await expect.poll(() => waiting.ended).toBe(true)
  })

  it('does not look for those it has seen', async () => {
    const { ctx, watch, looks, wait, stop } = await open()
    watch.wake()
    const waiting = wait(await idleCursor(ctx, 'a'))
    await ctx.databases.primary.sql`select 1`
    await settle()
    expect(looks.begun).toBe(0)
    stop.abort()
    await waiting.end
  })

  it('has one poll for many cursors, which finds what nobody told of', async () => {
    const { ctx, looks, wait } = await open(50)
    const idles = await Promise.all(Array.from({ length: 40 }, () => idleCursor(ctx, 'a')))
    const waiting = idles.map((idle) => wait(idle))
    await expect.poll(() => looks.begun).toBeGreaterThan(2)
    const { held, release } = holdLook(looks)
    await held
    const before = looks.begun
    await append(ctx, 'a', 1)
    release()
    await Promise.all(waiting.map(({ end }) => end))
    expect(looks.begun - before).toBe(1)
  })

  it('does not begin a look while another one is under way, whoever comes meanwhile', async () => {
    const { ctx, looks, wait, stop } = await open(1)
    const first = wait(await idleCursor(ctx, 'a'))
    const { held, release } = holdLook(looks)
    await held
    const more = wait(await idleCursor(ctx, 'a'))
    for (let i = 0; i < 20; i++) await ctx.databases.primary.sql`select 1`
    expect(looks.begun).toBe(1)
    release()
    await expect.poll(() => looks.begun).toBeGreaterThan(2)
    stop.abort()
    await Promise.all([first.end, more.end])
  })

  it('moves the base of a cursor for which nothing is there', async () => {
    const { ctx, watch, looks, wait, stop } = await open()
    const idle = await idleCursor(ctx, 'a')
    const before = idle.base
    const { other } = await keysBesides(ctx, 'a')
    await append(ctx, other, 1)
    const waiting = wait(idle)
    watch.wake()
    await expect.poll(() => idle.base).not.toBe(before)
    expect(looks.begun).toBe(1)
    expect(waiting.ended).toBe(false)
    stop.abort()
    await waiting.end
  })

  it('finds a parked event that is due and a replay that waits', async () => {
    const { ctx, watch, wait } = await open()
    const { sql } = ctx.databases.primary
    const parked = wait(await idleCursor(ctx, 'a'))
    await sql`insert into holdfast.outbox_parked (sink, shard, outbox_id, event_id, type, event, retry_at)
      values ('sink', ${await shardOf(ctx, 'a')}, 1, gen_random_uuid(), 't', '{}', clock_timestamp())`
    watch.wake()
    await parked.end
    await sql`delete from holdfast.outbox_parked`
    const replay = wait(await idleCursor(ctx, 'a'))
    await sql`insert into holdfast.outbox_replays (sink, shard) values ('sink', ${await shardOf(ctx, 'a')})`
    watch.wake()
    await replay.end
    expect(replay.ended).toBe(true)
  })

  it('lets go whoever waits when the signal aborts, before and while it waits', async () => {
    const { ctx, watch, wait, stop } = await open()
    const waiting = wait(await idleCursor(ctx, 'a'))
    stop.abort()
    await waiting.end
    const late = watch.wait(await idleCursor(ctx, 'a'), AbortSignal.abort(), 0)
    await expect(late).resolves.toBeUndefined()
  })

  it('hands an error of the database to those that wait, and looks again for those that come later', async () => {
    const { ctx, watch, looks, wait } = await open()
    const waiting = [wait(await idleCursor(ctx, 'a')), wait(await idleCursor(ctx, 'b'))]
    looks.after = async () => {
      throw new Error('the database is away')
    }
    watch.wake()
    for (const { end } of waiting) await expect(end).rejects.toThrow('the database is away')
    looks.after = async () => {}
    const again = wait(await idleCursor(ctx, 'a'))
    await append(ctx, 'a', 1)
    watch.wake()
    await again.end
  })
})

describe('a wake-up', () => {
  it('is sent at once, and a burst leads to at least one and at most a few', async () => {
    const urls = await newDatabases()
    const ctx = await openContext(urls)
    const listener = createClient(urls.primary!, { max: 1 })
    onTestFinished(() => listener.end())
    let heard = 0
    await listener.listen('holdfast_outbox', () => {
      heard++
    })
    ctx.outboxWakeup.committed()
    await expect.poll(() => heard).toBe(1)
    heard = 0
    for (let i = 0; i < 20_000; i++) ctx.outboxWakeup.committed()
    // One at once and one for all that came after it.
    await expect.poll(() => heard).toBe(2)
    await ctx.databases.primary.sql`select pg_notify('holdfast_outbox', 'last')`
    await expect.poll(() => heard).toBe(3)
  })

  it('that a distributed commit sends reaches an idle relay of another process that polls once an hour', async () => {
    const urls = await newDatabases()
    const [writer, worker] = [await openContext(urls), await openContext(urls)]
    const receiver = await Receiver.create(worker)
    const relays = new Relays(worker, await receiver.open(), {
      sink: 'sink',
      pageSize: 10,
      wants: () => true,
    })
    const watch = new OutboxWatch(worker.databases.primary.sql, hour)
    const unlisten = await worker.outboxWakeup.listen(() => watch.wake())
    const circuit = new Circuit({ clock: worker.clock, firstMs: 10, maxMs: 50 })
    const stop = new AbortController()
    const parts = { circuit, watch, retryMs: 10, maxRetryMs: 50, onBlocked: () => undefined }
    const running = (await relays.all()).map((relay) => runOutbox(worker, relay, parts, stop.signal))
    for (let n = 1; n <= 20; n++) {
      await beginDistributed(writer, `order_${n}`, (tx) => appendEvents(tx, numberedEvent(`key${n}`, n)))
      await commitDistributed(writer, `order_${n}`)
      // Sometimes at once, while the relays are busy with the one before.
      if (n % 3 === 0) await expect.poll(async () => (await receiver.received()).length).toBe(n)
    }
    await expect.poll(async () => (await receiver.received()).length).toBe(20)
    stop.abort()
    await Promise.all(running)
    await unlisten()
  })
})
