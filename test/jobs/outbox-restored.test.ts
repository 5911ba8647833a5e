import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { createDatabase } from '../../src/db/create-database.ts'
import { RejectedEventError, RestoredDatabaseError, SinkUnavailableError } from '../../src/db/errors.ts'
import { appendEvents } from '../../src/db/outbox.ts'
import { rebaseOutbox } from '../../src/db/outbox-actions.ts'
import { beginDistributed } from '../../src/jobs/begin.ts'
import type { JobContext } from '../../src/jobs/context.ts'
import { commitDistributed } from '../../src/jobs/coordinator.ts'
import { publishByKey } from '../../src/jobs/sinks/publish-by-key.ts'
import type { OpenSink, Page } from '../../src/jobs/sinks/sink.ts'
import { openContext } from '../support/database.ts'
import { Relays } from '../support/relays.ts'
import {
  createCluster,
  dumpAndRestore,
  findPrograms,
  type SystemPostgres,
  upgrade,
} from '../support/system-postgres.ts'

const signal = new AbortController().signal
const keys = ['a', 'b', 'c', 'd', 'e']

/** A sink that keeps what it took, outside of any database; it can be away, and reject an event. */
class Recorder implements OpenSink {
  readonly taken: number[] = []
  readonly generations = new Set<number>()
  pagesLeft = Number.POSITIVE_INFINITY
  rejects = -1

  async publish(page: Page) {
    if (this.pagesLeft-- <= 0) throw new SinkUnavailableError('away')
    this.generations.add(page.generation)
    return publishByKey(page.events, 1, async (event) => {
      const { n } = event.attributes.data as { n: number }
      if (n === this.rejects) return new RejectedEventError('not this one')
      this.taken.push(n)
      return undefined
    })
  }

  async close() {}
}

const keyOf = (n: number) => keys[n % keys.length]!
const event = (n: number) => ({ type: 'test.counted', subject: keyOf(n), data: { n } })
const upTo = (n: number) => Array.from({ length: n }, (_, i) => i + 1)

async function append(ctx: JobContext, ...numbers: number[]): Promise<void> {
  for (const n of numbers) await ctx.databases.primary.transaction((tx) => appendEvents(tx, event(n)))
}

/** Transactions of the past, or of the time to come. */
async function burnXids(ctx: JobContext, count: number): Promise<void> {
  await ctx.databases.primary.sql.unsafe(
    `do $$ begin for i in 1..${count} loop perform pg_current_xact_id(); commit; end loop; end $$`,
  )
}

const relaysOf = (ctx: JobContext, sink: OpenSink) =>
  new Relays(ctx, sink, { sink: 'sink', pageSize: 3, wants: () => true, policy: { maxAttempts: 1 } })

const programs = await findPrograms()
const bin = programs ?? ''

describe.runIf(programs !== undefined)('a database that moves', () => {
  let [old, fresh]: SystemPostgres[] = []
  const start = async () => {
    const cluster = await createCluster(bin)
    await cluster.start()
    return cluster
  }
  beforeAll(async () => {
    old = await start()
    fresh = await start()
  })
  afterAll(async () => {
    await old?.remove()
    await fresh?.remove()
  })

  /** Published in part: a late one behind what is passed, one parked, some in the middle of an open list, some unseen. */
  async function history(ctx: JobContext, sink: Recorder): Promise<void> {
    await burnXids(ctx, 3_000)
    const relays = relaysOf(ctx, sink)
    await beginDistributed(ctx, 'late', (tx) => appendEvents(tx, event(1)))
    await append(ctx, ...upTo(20).slice(1))
    sink.rejects = 19
    await relays.drain(signal)
    expect(sink.taken).toHaveLength(18)
    await commitDistributed(ctx, 'late')
    await append(ctx, ...upTo(60).slice(20))
    sink.pagesLeft = 5
    await expect(relays.drain(signal)).rejects.toThrow(SinkUnavailableError)
    sink.pagesLeft = Number.POSITIVE_INFINITY
    sink.rejects = -1
    await append(ctx, 61, 62)
    expect(sink.taken.length).toBeLessThan(40)
  }

  it('by dump and restore stops its cursors; rebased, no event is lost and none comes twice', async () => {
    const before = await openContext({ primary: await createDatabase(old!.url, 'shop') })
    const sink = new Recorder()
    await history(before, sink)
    const takenBefore = sink.taken.length

    const target = await createDatabase(fresh!.url, 'shop')
    await dumpAndRestore(bin, before.databases.primary.url, target)
    const after = await openContext({ primary: target })
    const [xids] = await after.databases.primary.sql<{ young: boolean }[]>`
      select pg_snapshot_xmax(pg_current_snapshot()) < (select min(xid) from holdfast.outbox) as young`
    expect(xids?.young).toBe(true)
    // Written by transactions whose xids the old snapshots take for passed.
    await append(after, ...upTo(80).slice(62))
    const relays = relaysOf(after, sink)
    await expect(relays.drain(signal)).rejects.toThrow(RestoredDatabaseError)
    expect(sink.taken).toHaveLength(takenBefore)

    expect(
      await rebaseOutbox(after.databases.primary, 'sink', { who: 'test', why: 'restored' }),
    ).toHaveLength(4)
    await append(after, 81)
    expect(await relays.drain(signal)).toMatchObject({ outcome: 'idle' })
    // The parked one is dead, and the later ones of its key wait: they are redriven as anywhere else.
    await after.databases.primary.sql`select holdfast.redrive_parked('sink', null, 'test', 'healed')`
    expect(await relays.drain(signal)).toMatchObject({ outcome: 'idle' })
    expect(sink.generations).toEqual(new Set([1, 2]))
    // The new server's xids come to where the old rows' are: nothing of them is taken for new.
    await burnXids(after, 8_000)
    await append(after, 82, 83)
    expect(await relays.drain(signal)).toMatchObject({ outcome: 'idle' })
    expect(sink.taken.toSorted((a, b) => a - b)).toEqual(upTo(83))
    for (const key of keys) {
      // The late one committed behind the others of its key.
      const ofKey = sink.taken.filter((n) => keyOf(n) === key && n !== 1)
      expect(ofKey).toEqual(ofKey.toSorted((a, b) => a - b))
    }
  })

  it('by pg_upgrade goes on as it was', async () => {
    const before = await openContext({ primary: await createDatabase(old!.url, 'upgraded') })
    const sink = new Recorder()
    await history(before, sink)
    await before.lease.end()
    await before.databases.end()
    await old!.stop()
    const target = await createCluster(bin)
    await upgrade(bin, old!, target)
    await target.start()
    try {
      const after = await openContext({ primary: target.url.replace(/postgres$/, 'upgraded') })
      await append(after, ...upTo(80).slice(62))
      const relays = relaysOf(after, sink)
      expect(await relays.drain(signal)).toMatchObject({ outcome: 'idle' })
      await after.databases.primary.sql`select holdfast.redrive_parked('sink', null, 'test', 'healed')`
      await append(after, 81)
      expect(await relays.drain(signal)).toMatchObject({ outcome: 'idle' })
      expect(sink.taken.toSorted((a, b) => a - b)).toEqual(upTo(81))
      expect(sink.generations).toEqual(new Set([1]))
      await after.lease.end()
      await after.databases.end()
    } finally {
      await target.remove()
    }
  })
})
