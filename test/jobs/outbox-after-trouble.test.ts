import { afterEach, describe, expect, it, onTestFinished, vi } from 'vitest'
import { SinkUnavailableError } from '../../src/db/errors.ts'
import { appendEvents } from '../../src/db/outbox.ts'
import { replayOutbox } from '../../src/db/outbox-actions.ts'
import { recordCircuit } from '../../src/db/outbox-circuits.ts'
import { Circuit } from '../../src/jobs/circuit.ts'
import { CircuitRecorder, reportingTo } from '../../src/jobs/circuit-reporting.ts'
import { OutboxWatch } from '../../src/jobs/outbox-watch.ts'
import { publishMs } from '../../src/jobs/page-run.ts'
import { runOutbox } from '../../src/jobs/run-outbox.ts'
import { defineSink } from '../../src/jobs/sinks/define-sink.ts'
import type { OpenSink } from '../../src/jobs/sinks/sink.ts'
import { newDatabases, openContext } from '../support/database.ts'
import { numbered, pageOf, sinkContextOf } from '../support/outbox-page.ts'
import {
  append,
  hand,
  holdAt,
  keysBesides,
  makeDue,
  numberedEvent,
  shardOf,
} from '../support/outbox-relay.ts'
import { Receiver } from '../support/receiver.ts'
import { Relays } from '../support/relays.ts'

const signal = new AbortController().signal

afterEach(() => {
  vi.useRealTimers()
})

describe('a circuit that opened', () => {
  it('closes with the first page that is taken, not when the probing shard has nothing left', async () => {
    const ctx = await openContext(await newDatabases())
    const { other } = await keysBesides(ctx, 'a')
    let down = true
    let serial = 1
    const taken: string[] = []
    const stop = new AbortController()
    const busyShard = await shardOf(ctx, 'a')
    const sink: OpenSink = {
      async publish({ shard, events }) {
        if (down) throw new SinkUnavailableError('down for the test')
        // This shard's writers are never at rest.
        if (shard === busyShard && !stop.signal.aborted) {
          await ctx.databases.primary.transaction((tx) => appendEvents(tx, numberedEvent('a', ++serial)))
        }
        for (const { partitionkey } of events) taken.push(partitionkey ?? '')
        return { rejected: [] }
      },
      close: async () => undefined,
    }
    await append(ctx, 'a', 1)
    const watch = new OutboxWatch(ctx.databases.primary.sql, 10)
    const circuit = new Circuit({
      clock: ctx.clock,
      firstMs: 1,
      maxMs: 5,
      onChange: (state, failures) => {
        if (state === 'open' && failures > 1) down = false
      },
    })
    const relays = await new Relays(ctx, reportingTo(circuit, sink), {
      sink: 'sink',
      pageSize: 10,
      wants: () => true,
    }).all()
    const parts = { circuit, watch, retryMs: 1, maxRetryMs: 5, onBlocked: () => undefined }
    onTestFinished(() => stop.abort())
    const running = [runOutbox(ctx, relays[busyShard]!, parts, stop.signal)]
    await expect.poll(() => taken.length).toBeGreaterThan(5)
    // The other shard comes while the first one, which probes, is still at work.
    await append(ctx, other, 1)
    running.push(runOutbox(ctx, relays[await shardOf(ctx, other)]!, parts, stop.signal))
    try {
      await expect.poll(() => taken.includes(other)).toBe(true)
    } finally {
      stop.abort()
      await Promise.all(running)
    }
  })
})

describe('a sink made with defineSink', () => {
  it('that is too slow for a page tells in time what it took, so that the rest comes next', async () => {
    vi.useFakeTimers()
    const open = await defineSink({
      deliver: () => new Promise((resolve) => setTimeout(resolve, 100)),
    }).open(sinkContextOf())
    const events = Array.from({ length: 1_000 }, (_, i) => numbered(i + 1))
    let published: Awaited<ReturnType<OpenSink['publish']>> | undefined
    void open.publish(pageOf(events), signal).then((answer) => {
      published = answer
    })
    await vi.advanceTimersByTimeAsync(publishMs - 1)
    expect(published?.stopped?.taken.length).toBeGreaterThan(100)
  })

  it('begins nothing more of a page when its signal aborts', async () => {
    const stop = new AbortController()
    let begun = 0
    const open = await defineSink({
      async deliver() {
        begun++
        if (begun === 3) stop.abort()
      },
    }).open(sinkContextOf())
    const events = Array.from({ length: 50 }, (_, i) => numbered(i + 1))
    await open.publish(pageOf(events), stop.signal).catch(() => undefined)
    expect(begun).toBeLessThan(10)
  })
})

describe('a replay', () => {
  it('has an id of its own also for an event that was rejected in it and is tried again', async () => {
    const ctx = await openContext(await newDatabases())
    const receiver = await Receiver.create(ctx)
    const relay = new Relays(ctx, await receiver.open(), { sink: 'sink', pageSize: 10, wants: () => true })
    const [id] = await append(ctx, 'a', 1)
    await relay.drain(signal)
    await replayOutbox(ctx.databases.primary, 'sink', { event: id! }, hand)
    receiver.reject(1)
    await relay.drain(signal)
    receiver.heal()
    await makeDue(ctx)
    await relay.drain(signal)
    const rows = await receiver.received()
    expect(rows.map(({ eventId }) => eventId)).toEqual([id, id])
    expect(rows[1]?.messageId).not.toBe(id)
  })
})

describe('a page that was published', () => {
  it('is not sent again by the same relay when the reader loses its connection before the commit is sent', async () => {
    const urls = await newDatabases()
    const [ctx, killer] = [await openContext(urls), await openContext(urls)]
    const receiver = await Receiver.create(killer)
    const relay = new Relays(ctx, await receiver.open(), { sink: 'sink', pageSize: 3, wants: () => true })
    await append(killer, 'a', 1, 2, 3, 4, 5, 6)
    const one = (await relay.all())[await shardOf(ctx, 'a')]!
    const { running, release } = await holdAt('page.published', () => one.drain(signal))
    await killer.databases.primary.sql`select pg_terminate_backend(pid, 5000) from pg_stat_activity
      where datname = current_database() and pid <> pg_backend_pid()`
    release()
    await running.catch(() => undefined)
    await expect
      .poll(() =>
        one.drain(signal).then(
          ({ outcome }) => outcome,
          () => 'failed',
        ),
      )
      .toBe('idle')
    expect(await receiver.numbers('a')).toEqual([1, 2, 3, 4, 5, 6])
  })
})

describe('the state of a circuit', () => {
  it('is recorded', async () => {
    const ctx = await openContext(await newDatabases())
    const { sql } = ctx.databases.primary
    const cursors = [0, 1].map((shard) => ({ sink: 'sink', shard }))
    await recordCircuit(sql, cursors, { state: 'open', failures: 2, error: 'away', worker: 'w' })
    await recordCircuit(sql, cursors.slice(1), { state: 'blocked', failures: 1, error: 'no', worker: 'v' })
    expect(
      await sql`select shard, state, failures, error, worker from holdfast.outbox_circuits order by shard`,
    ).toEqual([
      { shard: 0, state: 'open', failures: 2, error: 'away', worker: 'w' },
      { shard: 1, state: 'blocked', failures: 1, error: 'no', worker: 'v' },
    ])
  })

  it('is the newest that was said, in whatever order the statements reach the server', async () => {
    const ctx = await openContext(await newDatabases())
    const { sql } = ctx.databases.primary
    const recorder = new CircuitRecorder(sql, 'w', ctx.log)
    for (let i = 0; i < 200; i++) {
      recorder.say([{ sink: 'sink', shard: 0 }], 'open', 1)
      recorder.say([{ sink: 'sink', shard: 0 }], 'closed', 0)
      await recorder.settled()
      const [row] = await sql<{ state: string }[]>`select state from holdfast.outbox_circuits`
      expect(row?.state, `round ${i}`).toBe('closed')
    }
  })
})
