import { describe, expect, it } from 'vitest'
import { SinkUnavailableError } from '../../src/db/errors.ts'
import { Circuit, type CircuitSettings, type Leave } from '../../src/jobs/circuit.ts'
import { OutboxWatch } from '../../src/jobs/outbox-watch.ts'
import { runOutbox } from '../../src/jobs/run-outbox.ts'
import type { OpenSink, Page } from '../../src/jobs/sinks/sink.ts'
import { newDatabases, openContext } from '../support/database.ts'
import { FakeClock, JumpingClock, settle } from '../support/fake-clock.ts'
import { append } from '../support/outbox-relay.ts'
import { preparedGids } from '../support/prepared-gids.ts'
import { Relays } from '../support/relays.ts'

const signal = new AbortController().signal
const down = new SinkUnavailableError('down for the test')

function circuitWith(settings: Partial<CircuitSettings> = {}) {
  const clock = new FakeClock()
  const changes: string[] = []
  const circuit = new Circuit({
    clock,
    firstMs: 100,
    maxMs: 1_000,
    random: () => 1,
    onChange: (state, failures, error) => changes.push(`${state} ${failures} ${error?.message ?? ''}`.trim()),
    ...settings,
  })
  /** Asks for leave; `leave` is there when it was given. */
  const ask = (abort = signal) => {
    const asked: { leave?: Leave } = {}
    void circuit.pass(abort).then((leave) => {
      asked.leave = leave
    })
    return asked
  }
  /** Opens it and lets the first back-off pass; returns the probe's leave. */
  const probe = async () => {
    circuit.failed(down, await circuit.pass(signal))
    await clock.advance(200)
    return circuit.pass(signal)
  }
  return { clock, circuit, changes, ask, probe }
}

describe('a circuit', () => {
  it('lets all pass while it is closed', async () => {
    const { circuit, changes } = circuitWith()
    expect(await Promise.all([circuit.pass(signal), circuit.pass(signal)])).toEqual([
      { probe: false },
      { probe: false },
    ])
    expect(changes).toEqual([])
  })

  it('opens with a failure: nobody passes before the back-off is over, and then one', async () => {
    const { clock, circuit, ask } = circuitWith()
    circuit.failed(down, await circuit.pass(signal))
    const asked = [ask(), ask(), ask(), ask()]
    await clock.advance(199)
    expect(asked).toEqual([{}, {}, {}, {}])
    await clock.advance(1)
    expect(asked).toEqual([{ leave: { probe: true } }, {}, {}, {}])
  })

  it('waits twice as long with each failure, up to the maximum', async () => {
    const { clock, circuit } = circuitWith()
    const waited: number[] = []
    for (let i = 0; i < 6; i++) {
      const leave = circuit.pass(signal)
      await settle()
      waited.push(...clock.waits)
      await clock.advance(clock.waits[0] ?? 0)
      circuit.failed(down, await leave)
    }
    expect(waited).toEqual([200, 400, 800, 1_000, 1_000])
  })

  it.each([0.25, 0.5])('waits that part of it that chance says: %d', async (chance) => {
    const { clock, circuit, ask } = circuitWith({ random: () => chance })
    circuit.failed(down, await circuit.pass(signal))
    ask()
    await settle()
    expect(clock.waits).toEqual([200 * chance])
  })

  it('waits as long as the sink asked for, however long, and by its own measure when that is longer', async () => {
    const { clock, circuit, ask } = circuitWith()
    const asking = (retryAfterMs: number) => new SinkUnavailableError('busy', { retryAfterMs })
    circuit.failed(asking(90_000), await circuit.pass(signal))
    const one = ask()
    await clock.advance(89_999)
    expect(one).toEqual({})
    await clock.advance(1)
    circuit.failed(asking(5), one.leave!)
    ask()
    await settle()
    expect(clock.waits).toEqual([400])
  })

  it('closes with the probe’s success, for all that wait', async () => {
    const { circuit, changes, ask, probe } = circuitWith()
    await probe()
    const others = [ask(), ask()]
    await settle()
    expect(others).toEqual([{}, {}])
    circuit.succeeded()
    await settle()
    expect(others).toEqual([{ leave: { probe: false } }, { leave: { probe: false } }])
    expect(circuit.open).toBe(false)
    expect(changes).toEqual(['open 1 down for the test', 'closed 0'])
  })

  it('stays open with the probe’s failure, and begins anew after it has closed', async () => {
    const { clock, circuit, changes, ask, probe } = circuitWith()
    circuit.failed(down, await probe())
    const other = ask()
    await clock.advance(399)
    expect(other).toEqual({})
    await clock.advance(1)
    expect(other).toEqual({ leave: { probe: true } })
    circuit.succeeded()
    circuit.failed(down, await circuit.pass(signal))
    ask()
    await settle()
    expect(clock.waits).toEqual([200])
    expect(changes.map((change) => change.slice(0, 6))).toEqual(['open 1', 'open 2', 'closed', 'open 1'])
  })

  it('lets another one try when the probe went away without an answer', async () => {
    const { circuit, ask, probe } = circuitWith()
    const leave = await probe()
    const other = ask()
    await settle()
    circuit.left(leave)
    await settle()
    expect(other).toEqual({ leave: { probe: true } })
  })

  it('counts the failures of those that were on their way once', async () => {
    const { clock, circuit, changes, ask } = circuitWith()
    const leaves = await Promise.all([1, 2, 3, 4].map(() => circuit.pass(signal)))
    for (const leave of leaves) circuit.failed(down, leave)
    expect(changes).toHaveLength(1)
    ask()
    await settle()
    expect(clock.waits).toEqual([200])
  })

  it.each(['failed', 'left'] as const)(
    'has one probe at a time, also when one that was on its way when it opened %s',
    async (late) => {
      const { clock, circuit, changes, ask } = circuitWith()
      const early = await circuit.pass(signal)
      circuit.failed(down, await circuit.pass(signal))
      await clock.advance(200)
      const probe = await circuit.pass(signal)
      expect(probe).toEqual({ probe: true })
      const other = ask()
      if (late === 'failed') circuit.failed(down, early)
      else circuit.left(early)
      await clock.advance(10_000)
      expect(other).toEqual({})
      expect(changes).toHaveLength(1)
      circuit.left(probe)
      await settle()
      expect(other).toEqual({ leave: { probe: true } })
    },
  )

  it('lets go whoever waits when the signal aborts, in the back-off and behind a probe', async () => {
    const { clock, circuit, ask } = circuitWith()
    const stop = new AbortController()
    circuit.failed(down, await circuit.pass(signal))
    const inBackOff = ask(stop.signal)
    await settle()
    stop.abort()
    await settle()
    expect(inBackOff).toEqual({ leave: { probe: false } })
    await clock.advance(200)
    const again = new AbortController()
    await circuit.pass(signal)
    const behind = ask(again.signal)
    await settle()
    again.abort()
    await settle()
    expect(behind).toEqual({ leave: { probe: false } })
  })
})

describe('a broker that is down for ten minutes, and four shards', () => {
  it('is asked a bounded number of times, one shard at a time, and charges no event an attempt', async () => {
    const clock = new JumpingClock()
    const ctx = await openContext(await newDatabases(), undefined, { clock })
    const downMs = 10 * 60_000
    const taken: number[] = []
    let attempts = 0
    let atOnce = 0
    let most = 0
    const sink: OpenSink = {
      async publish(page: Page) {
        atOnce++
        // All four were on their way when it opened; what comes later are probes.
        if (clock.now() > 60_000 && clock.now() < downMs) most = Math.max(most, atOnce)
        try {
          await settle()
          if (clock.now() < downMs) {
            attempts++
            throw down
          }
        } finally {
          atOnce--
        }
        for (const { attributes } of page.events) taken.push((attributes.data as { n: number }).n)
        return { rejected: [] }
      },
      close: async () => undefined,
    }
    const numbers = Array.from({ length: 40 }, (_, i) => i + 1)
    for (const n of numbers) await append(ctx, `key${n % 10}`, n)
    const states: string[] = []
    // Chance is as it likes, but known.
    let chance = 0
    const circuit = new Circuit({
      clock,
      firstMs: 250,
      maxMs: 30_000,
      random: () => ((chance = (chance + 7) % 10) + 1) / 10,
      onChange: (state) => states.push(state),
    })
    const watch = new OutboxWatch(ctx.databases.primary.sql, 20)
    const stop = new AbortController()
    const parts = { circuit, watch, retryMs: 250, maxRetryMs: 30_000, onBlocked: () => undefined }
    const relays = await new Relays(ctx, sink, { sink: 'sink', pageSize: 10, wants: () => true }).all()
    expect(relays).toHaveLength(4)
    const running = relays.map((relay) => runOutbox(ctx, relay, parts, stop.signal))
    await expect.poll(() => taken.length).toBe(40)
    stop.abort()
    await Promise.all(running)
    expect(taken.toSorted((a, b) => a - b)).toEqual(numbers)
    for (let key = 0; key < 10; key++) {
      const ofKey = taken.filter((n) => n % 10 === key)
      expect(ofKey).toEqual(ofKey.toSorted((a, b) => a - b))
    }
    // Ten minutes are twenty maxima; with chance four times as many tries are plenty.
    expect(attempts).toBeGreaterThan(15)
    expect(attempts).toBeLessThan(80)
    expect(most).toBe(1)
    expect(states.at(-1)).toBe('closed')
    expect(states.filter((state) => state === 'closed')).toHaveLength(1)
    expect(await ctx.databases.primary.sql`select from holdfast.outbox_parked`).toHaveLength(0)
    expect(await preparedGids(ctx)).toEqual([])
  })
})
