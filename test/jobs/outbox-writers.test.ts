import { describe, expect, it } from 'vitest'
import { appendEvents } from '../../src/db/outbox.ts'
import { beginDistributed } from '../../src/jobs/begin.ts'
import type { JobContext } from '../../src/jobs/context.ts'
import { commitDistributed, rollbackDistributed } from '../../src/jobs/coordinator.ts'
import type { OpenSink } from '../../src/jobs/sinks/sink.ts'
import { sinkContext } from '../../src/jobs/sinks/sink-context.ts'
import { table } from '../../src/jobs/sinks/table.ts'
import { newDatabases, openContext } from '../support/database.ts'
import { append, appendTogether, numberedEvent } from '../support/outbox-relay.ts'
import { preparedGids } from '../support/prepared-gids.ts'
import { Relays } from '../support/relays.ts'

const signal = new AbortController().signal
const upTo = (n: number) => Array.from({ length: n }, (_, i) => i + 1)

async function relayTo(ctx: JobContext, pageSize: number, wrap = (sink: OpenSink) => sink): Promise<Relays> {
  const open = await table({ database: 'billing' }).open(sinkContext(ctx, 'sink'))
  return new Relays(ctx, wrap(open), { sink: 'sink', pageSize, wants: () => true })
}

async function delivered({ databases }: JobContext): Promise<{ key: string | null; n: number }[]> {
  return databases.get('billing').sql<{ key: string | null; n: number }[]>`
    select partitionkey as key, (data->>'n')::int as n from holdfast.inbox order by seq`
}

/** The numbers of each key, in the order of their delivery. */
async function byKey(ctx: JobContext): Promise<Map<string | null, number[]>> {
  const keys = new Map<string | null, number[]>()
  for (const { key, n } of await delivered(ctx)) keys.set(key, [...(keys.get(key) ?? []), n])
  return keys
}

describe('writers of all kinds, and two relays for each shard that are abandoned now and then', () => {
  it('nothing is missing or doubled, and each key keeps the order of the lock that orders it', async () => {
    const urls = await newDatabases({ billing: 'west' })
    const ctxs = [await openContext(urls), await openContext(urls)]
    const [ctx] = ctxs as [JobContext, JobContext]
    const { primary } = ctx.databases
    await primary.sql`create table accounts (key text primary key, n int not null)`
    const keys = ['a', 'b', 'c', 'd']
    await primary.sql`insert into accounts select unnest(${keys}::text[]), 0`
    const done = new AbortController()
    // Each relay runs for a while, is dropped in the middle of whatever it does, and is made anew.
    const relaying = ctxs.map(async (one, i) => {
      for (let life = 1; !done.signal.aborted; life++) {
        let pages = 0
        const life_ = new AbortController()
        const relay = await relayTo(one, 3 + i, (sink) => ({
          ...(sink.target === undefined ? {} : { target: sink.target }),
          close: () => sink.close(),
          async publish(page, abort) {
            if (++pages % (2 + ((life * 7 + i) % 5)) === 0) life_.abort()
            return sink.publish(page, abort)
          },
        }))
        while (!done.signal.aborted && !life_.signal.aborted) await relay.drain(life_.signal)
      }
    })
    // The row that the writers of a key lock gives each its number, and publishing comes after.
    const next = async (key: string) =>
      primary.transaction(async (tx) => {
        const [row] = await tx<{ n: number }[]>`update accounts set n = n + 1 where key = ${key} returning n`
        await appendEvents(tx, numberedEvent(key, row?.n ?? 0))
      })
    const causal = keys.flatMap((key) =>
      upTo(3).map(async () => {
        for (let i = 0; i < 15; i++) await next(key)
      }),
    )
    const prepared = (async () => {
      const held: string[] = []
      for (const n of upTo(24)) {
        const name = `held_${n}`
        await beginDistributed(ctx, name, (tx) =>
          appendEvents(tx, [numberedEvent(null, n), numberedEvent(`p${n}`, n)]),
        )
        held.push(name)
        if (held.length < 8) continue
        // The oldest commits long after what came later; every other one rolls back.
        const oldest = held.shift() ?? ''
        if (n % 2 === 0) await commitDistributed(ctx, oldest)
        else await rollbackDistributed(ctx, oldest, 'test')
      }
      return held
    })()
    const failing = (async () => {
      for (const n of upTo(20)) {
        const work = primary.transaction(async (tx) => {
          await appendEvents(tx, numberedEvent('a', 1_000 + n))
          throw new Error('rolled back')
        })
        await work.catch((error: unknown) => expect(error).toMatchObject({ message: 'rolled back' }))
      }
    })()
    const [left] = await Promise.all([prepared, failing, ...causal])
    for (const name of left) await commitDistributed(ctx, name)
    const committed = upTo(24).filter((n) => n > 17 || (n + 7) % 2 === 0)
    const expected = keys.length * 45 + committed.length * 2
    await expect.poll(async () => (await delivered(ctx)).length).toBeGreaterThanOrEqual(expected)
    done.abort()
    await Promise.all(relaying)
    await (await relayTo(ctx, 10)).drain(signal)
    const got = await byKey(ctx)
    for (const key of keys) expect(got.get(key)).toEqual(upTo(45))
    expect(got.get(null)?.toSorted((a, b) => a - b)).toEqual(committed)
    for (const n of upTo(24)) expect(got.get(`p${n}`)).toEqual(committed.includes(n) ? [n] : undefined)
    expect(await preparedGids(ctx)).toEqual([])
  })
})

describe('one transaction with 200,000 events', () => {
  it('is relayed in pages, in order, without holding it in memory', async () => {
    const ctx = await openContext(await newDatabases())
    const count = 200_000
    await ctx.databases.primary.transaction(async (tx) => {
      for (let from = 0; from < count; from += 5_000) {
        await tx`
          select holdfast.append_events(json_agg(json_build_object('specversion', '1.0', 'id', gen_random_uuid(), 'source', '/t',
            'type', 't', 'partitionkey', 'k' || n % 100, 'time', now(), 'data', json_build_object('n', n))))
          from generate_series(${from + 1}::int, ${from + 5_000}::int) n`
      }
    })
    await append(ctx, 'k1', count + 1)
    const newest = new Map<string | null, number>()
    let taken = 0
    let disordered = 0
    let largest = 0
    let heap = 0
    const sink: OpenSink = {
      async publish({ events }) {
        largest = Math.max(largest, events.length)
        if (taken % 20_000 < 1_000) heap = Math.max(heap, process.memoryUsage().heapUsed)
        for (const { attributes, partitionkey } of events) {
          const { n } = attributes.data as { n: number }
          if (n <= (newest.get(partitionkey) ?? 0)) disordered++
          newest.set(partitionkey, n)
        }
        taken += events.length
        return { rejected: [] }
      },
      close: async () => undefined,
    }
    const before = process.memoryUsage().heapUsed
    const begun = performance.now()
    const relay = new Relays(ctx, sink, { sink: 'sink', pageSize: 1_000, wants: () => true })
    expect(await relay.drain(signal)).toEqual({ published: count + 1, outcome: 'idle' })
    expect({ taken, disordered, largest, keys: newest.size }).toEqual({
      taken: count + 1,
      disordered: 0,
      largest: 1_000,
      keys: 100,
    })
    // All of them as objects would be more than 150 MB.
    expect(heap - before).toBeLessThan(120 * 1024 * 1024)
    expect(performance.now() - begun).toBeLessThan(60_000)
    expect(await preparedGids(ctx)).toEqual([])
  })

  it('in doubt holds nobody up, and comes whole when it commits', async () => {
    const ctx = await openContext(await newDatabases({ billing: 'west' }))
    const relay = await relayTo(ctx, 500)
    await beginDistributed(ctx, 'large', async (tx) => {
      await appendEvents(
        tx,
        upTo(3_000).map((n) => numberedEvent('large', n)),
      )
    })
    await appendTogether(ctx, [
      ['small', 1],
      ['large', 5_000],
    ])
    await relay.drain(signal)
    expect(await delivered(ctx)).toHaveLength(2)
    await commitDistributed(ctx, 'large')
    await append(ctx, 'small', 2)
    await relay.drain(signal)
    const got = await byKey(ctx)
    expect(got.get('large')).toEqual([5_000, ...upTo(3_000)])
    expect(got.get('small')).toEqual([1, 2])
  })
})
