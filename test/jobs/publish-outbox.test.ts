import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { SinkUnavailableError } from '../../src/db/errors.ts'
import { messageOf } from '../../src/db/message-of.ts'
import { appendEvents } from '../../src/db/outbox.ts'
import { readPosition, startEpoch } from '../../src/db/outbox-cursors.ts'
import { watchSteps } from '../../src/db/steps.ts'
import { beginDistributed } from '../../src/jobs/begin.ts'
import { Circuit } from '../../src/jobs/circuit.ts'
import type { JobContext } from '../../src/jobs/context.ts'
import { commitDistributed, rollbackDistributed } from '../../src/jobs/coordinator.ts'
import { OutboxWatch } from '../../src/jobs/outbox-watch.ts'
import type { Relay } from '../../src/jobs/publish-outbox.ts'
import { runOutbox } from '../../src/jobs/run-outbox.ts'
import type { OpenSink, Page } from '../../src/jobs/sinks/sink.ts'
import { sinkContext } from '../../src/jobs/sinks/sink-context.ts'
import { table } from '../../src/jobs/sinks/table.ts'
import { newDatabases, openContext } from '../support/database.ts'
import { preparedGids } from '../support/prepared-gids.ts'
import { Relays } from '../support/relays.ts'

const signal = new AbortController().signal

/** Remembers what it took, and can be down. */
class Recorder implements OpenSink {
  readonly pages: Page[] = []
  readonly taken: number[] = []
  down = false

  async publish(page: Page) {
    if (this.down) throw new SinkUnavailableError('down for the test')
    this.pages.push(page)
    for (const event of page.events) this.taken.push((event.attributes.data as { n: number }).n)
    return { rejected: [] }
  }

  async close() {}
}

const event = (n: number, type = 'test.counted') => ({ type, subject: 'a', data: { n } })
const upTo = (n: number) => Array.from({ length: n }, (_, i) => i + 1)

async function append(ctx: JobContext, ...numbers: number[]): Promise<void> {
  await ctx.databases.primary.transaction((tx) =>
    appendEvents(
      tx,
      numbers.map((n) => event(n)),
    ),
  )
}

async function shardOf(ctx: JobContext, key: string): Promise<number> {
  const [row] = await ctx.databases.primary.sql`select holdfast.outbox_shard(${key}, null) as shard`
  return Number(row?.shard)
}

function relayTo(
  ctx: JobContext,
  sink: OpenSink,
  pageSize = 10,
  wants: (type: string) => boolean = () => true,
): Relays {
  return new Relays(ctx, sink, { sink: 'sink', pageSize, wants: (e) => wants(e.type) })
}

describe('what is published', () => {
  it.each([0, 1, 9, 10, 11, 20, 25])('%i events in pages of ten, each once and in order', async (count) => {
    const ctx = await openContext(await newDatabases())
    const sink = new Recorder()
    const relay = relayTo(ctx, sink)
    for (const n of upTo(count)) await append(ctx, n)
    expect(await relay.drain(signal)).toEqual({ published: count, outcome: 'idle' })
    expect(sink.taken).toEqual(upTo(count))
    expect(await relay.drain(signal)).toEqual({ published: 0, outcome: 'idle' })
    expect(await preparedGids(ctx)).toEqual([])
  })

  it('what committed late, behind events that were published already, and nothing that rolled back', async () => {
    const ctx = await openContext(await newDatabases())
    const sink = new Recorder()
    const relay = relayTo(ctx, sink)
    // Ids 1 and 2 are taken by transactions that stay prepared while 3 commits and is published.
    await beginDistributed(ctx, 'late', (tx) => appendEvents(tx, event(1)))
    await beginDistributed(ctx, 'gone', (tx) => appendEvents(tx, event(2)))
    await append(ctx, 3)
    await relay.drain(signal)
    expect(sink.taken).toEqual([3])
    await commitDistributed(ctx, 'late')
    await rollbackDistributed(ctx, 'gone', 'test')
    await append(ctx, 4)
    await relay.drain(signal)
    expect(sink.taken).toEqual([3, 1, 4])
  })

  it('what a route wants, and the cursor passes over the rest', async () => {
    const ctx = await openContext(await newDatabases())
    const sink = new Recorder()
    const relay = relayTo(ctx, sink, 10, (type) => type === 'wanted')
    for (const n of upTo(35)) {
      await ctx.databases.primary.transaction((tx) => appendEvents(tx, event(n, n > 30 ? 'wanted' : 'other')))
    }
    await relay.drain(signal)
    expect(sink.taken).toEqual([31, 32, 33, 34, 35])
    await append(ctx, 36)
    expect(await relay.drain(signal)).toEqual({ published: 0, outcome: 'idle' })
  })

  it('each committed event exactly once, whatever order transactions prepare, commit and roll back in', async () => {
    const ctx = await openContext(await newDatabases())
    const sink = new Recorder()
    let serial = 0
    const step = fc.constantFrom('plain', 'hold', 'hold', 'commit', 'rollback', 'drain', 'new relay')
    await fc.assert(
      fc.asyncProperty(fc.array(step, { minLength: 5, maxLength: 25 }), async (steps) => {
        let relay = relayTo(ctx, sink, 3)
        const held: { name: string; n: number }[] = []
        const committed = new Set<number>()
        const before = sink.taken.length
        for (const what of steps) {
          const n = ++serial
          if (what === 'plain') {
            await append(ctx, n)
            committed.add(n)
          } else if (what === 'hold') {
            await beginDistributed(ctx, `held_${n}`, (tx) => appendEvents(tx, event(n)))
            held.push({ name: `held_${n}`, n })
          } else if (what === 'drain') await relay.drain(signal)
          else if (what === 'new relay') relay = relayTo(ctx, sink, 3)
          else {
            // The oldest or the newest, so that commits overtake each other.
            const one = n % 2 === 0 ? held.shift() : held.pop()
            if (one && what === 'commit') {
              await commitDistributed(ctx, one.name)
              committed.add(one.n)
            } else if (one) await rollbackDistributed(ctx, one.name, 'test')
          }
        }
        for (const one of held) {
          await commitDistributed(ctx, one.name)
          committed.add(one.n)
        }
        await relay.drain(signal)
        expect(sink.taken.slice(before).toSorted((a, b) => a - b)).toEqual(
          [...committed].toSorted((a, b) => a - b),
        )
      }),
      { numRuns: 30 },
    )
  })

  it('each event once and in its key’s order, with writers going on while two relays fight over the cursor', async () => {
    const urls = await newDatabases({ billing: 'west' })
    const first = await openContext(urls)
    const second = await openContext(urls)
    const stop = new AbortController()
    const relays = await Promise.all(
      [first, second].map(async (ctx) => {
        return relayTo(ctx, await table({ database: 'billing' }).open(sinkContext(ctx, 'inbox')), 7)
      }),
    )
    const relaying = relays.map(async (relay) => {
      while (!stop.signal.aborted) await relay.drain(stop.signal)
    })
    const keys = ['a', 'b', 'c']
    await Promise.all(
      keys.map(async (key) => {
        for (const n of upTo(60)) {
          await first.databases.primary.transaction((tx) =>
            appendEvents(tx, { type: 'test.counted', subject: key, data: { n } }),
          )
        }
      }),
    )
    stop.abort()
    await Promise.all(relaying)
    expect(await relays[0]!.drain(signal)).toMatchObject({ outcome: 'idle' })
    for (const key of keys) {
      const rows = await first.databases.get('billing').sql<{ n: number }[]>`
        select (data->>'n')::int as n from holdfast.inbox where subject = ${key} order by seq`
      expect(rows.map((row) => row.n)).toEqual(upTo(60))
    }
    expect(await preparedGids(first)).toEqual([])
  })
})

describe('a relay that polled in vain', () => {
  it('does not go back to where it was when another relay has moved the cursor meanwhile', async () => {
    const urls = await newDatabases()
    const [one, two] = [await openContext(urls), await openContext(urls)]
    const sink = new Recorder()
    const [idle, busy] = [relayTo(one, sink), relayTo(two, sink)]
    await append(one, 1, 2, 3)
    await idle.drain(signal)
    await one.databases.primary.transaction(async (tx) => tx`select pg_current_xact_id()`)
    expect(await idle.drain(signal)).toEqual({ published: 0, outcome: 'idle' })
    for (const n of [4, 5, 6]) {
      await append(two, n)
      await busy.drain(signal)
    }
    await append(one, 7)
    await idle.drain(signal)
    expect(sink.taken).toEqual(upTo(7))
  })

  it('could not: the database refuses an epoch whose base lies behind the last target', async () => {
    const ctx = await openContext(await newDatabases())
    const relay = relayTo(ctx, new Recorder())
    await append(ctx, 1)
    await relay.drain(signal)
    const { primary } = ctx.databases
    const cursor = { sink: 'sink', shard: await shardOf(ctx, 'a') }
    const position = await readPosition(primary.sql, cursor)
    const base = { snapshot: '3:3:', sequence: 0n }
    await expect(startEpoch(primary, cursor, position, base)).rejects.toMatchObject({ code: 'HF001' })
  })
})

describe('connections that are cut under a relay', () => {
  it('neither end the process nor double an event, wherever the cut lands', async () => {
    const urls = await newDatabases({ billing: 'west' })
    const [ctx, killer] = [await openContext(urls), await openContext(urls)]
    const inner = await table({ database: 'billing' }).open(sinkContext(ctx, 'inbox'))
    let pages = 0
    const sink: OpenSink = {
      target: 'billing',
      async publish(page, abort) {
        // While a page is at the sink, the reader of the epoch and the stager of the page lose their connections.
        if (++pages % 3 === 0) {
          await killer.databases.primary.sql`select pg_terminate_backend(pid, 5000) from pg_stat_activity
            where datname = current_database() and pid <> pg_backend_pid()`
        }
        return inner.publish(page, abort)
      },
      close: () => inner.close(),
    }
    const relay = relayTo(ctx, sink, 5)
    for (const n of upTo(60)) await append(killer, n)
    const stop = new AbortController()
    const circuit = new Circuit({ clock: ctx.clock, firstMs: 10, maxMs: 50 })
    const watch = new OutboxWatch(ctx.databases.primary.sql, 10)
    const parts = { circuit, watch, retryMs: 10, maxRetryMs: 50, onBlocked: () => undefined }
    // A relay that finds its page resolved by somebody else ends; the worker's queue starts it again.
    const keepRunning = async (one: Relay) => {
      while (!stop.signal.aborted) await runOutbox(ctx, one, parts, stop.signal)
    }
    const run = Promise.all((await relay.all()).map(keepRunning))
    const delivered = () => killer.databases.get('billing').sql<{ n: number }[]>`
      select (data->>'n')::int as n from holdfast.inbox order by seq`
    await expect.poll(async () => (await delivered()).length).toBe(60)
    stop.abort()
    await run
    // The last cut may have left connections in the pools that are found dead only when they are used.
    const outcome = () => relay.drain(signal).then((drained) => drained.outcome, messageOf)
    await expect.poll(outcome).toBe('idle')
    expect((await delivered()).map((row) => row.n)).toEqual(upTo(60))
    expect(await preparedGids(killer)).toEqual([])
  })
})

describe('a sink that is down', () => {
  it('leaves nothing prepared, and gets everything once it is back', async () => {
    const ctx = await openContext(await newDatabases())
    const sink = new Recorder()
    const relay = relayTo(ctx, sink)
    await append(ctx, 1, 2, 3)
    sink.down = true
    await expect(relay.drain(signal)).rejects.toThrow(SinkUnavailableError)
    expect(await preparedGids(ctx)).toEqual([])
    sink.down = false
    await append(ctx, 4)
    await relay.drain(signal)
    expect(sink.taken).toEqual([1, 2, 3, 4])
  })
})

describe('taking over', () => {
  /** A relay of another process that stops at a step of its first page until it is released. */
  async function heldAt(step: 'page.prepared' | 'page.published', relay: Relays) {
    let release = () => {}
    const held = new Promise<void>((resolve) => {
      watchSteps({
        steps: new Set([step]),
        reached: () => {
          watchSteps(undefined)
          resolve()
          return new Promise((go) => {
            release = go
          })
        },
      })
    })
    const draining = relay.drain(signal)
    await held
    return { draining, release: () => release() }
  }

  const expireLease = (ctx: JobContext) => ctx.databases.primary.sql`
    update holdfast.workers set lease_until = clock_timestamp() - interval '1 second' where id = ${ctx.lease.id}`

  it.each(['page.prepared', 'page.published'] as const)(
    'leaves the page of a live process alone, takes it from a dead one; a zombie held at %s doubles nothing',
    async (step) => {
      const urls = await newDatabases({ billing: 'west' })
      const [zombie, heir] = [await openContext(urls), await openContext(urls)]
      const sinkOf = (ctx: JobContext) => table({ database: 'billing' }).open(sinkContext(ctx, 'inbox'))
      await append(heir, ...upTo(25))
      const { draining, release } = await heldAt(step, relayTo(zombie, await sinkOf(zombie)))
      const relay = relayTo(heir, await sinkOf(heir))
      expect(await relay.drain(signal)).toEqual({ published: 0, outcome: 'stepped-back' })
      await expireLease(zombie)
      expect(await relay.drain(signal)).toMatchObject({ outcome: 'idle' })
      release()
      expect(await draining).toMatchObject({ outcome: 'stepped-back' })
      const rows = await heir.databases.get('billing').sql<{ n: number }[]>`
        select (data->>'n')::int as n from holdfast.inbox order by seq`
      expect(rows.map((row) => row.n)).toEqual(upTo(25))
      expect(await preparedGids(heir)).toEqual([])
    },
  )
})
