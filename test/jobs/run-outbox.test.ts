import { describe, expect, it, onTestFinished } from 'vitest'
import { RejectedEventError } from '../../src/db/errors.ts'
import { Circuit } from '../../src/jobs/circuit.ts'
import type { JobContext } from '../../src/jobs/context.ts'
import { OutboxWatch } from '../../src/jobs/outbox-watch.ts'
import { runOutbox } from '../../src/jobs/run-outbox.ts'
import type { SinkSpec } from '../../src/jobs/sinks/define-sink.ts'
import type { OpenSink } from '../../src/jobs/sinks/sink.ts'
import { newDatabases, openContext } from '../support/database.ts'
import { append, keysBesides, shardOf } from '../support/outbox-relay.ts'
import { Receiver } from '../support/receiver.ts'
import { Relays } from '../support/relays.ts'

/** Runs the relays of all shards until the test ends; `said` is what each shard said of being blocked. */
async function run(ctx: JobContext, sink: OpenSink, spec: Partial<SinkSpec> = {}) {
  const policy = spec.onReject === undefined ? {} : { policy: { onReject: spec.onReject } }
  const relays = new Relays(ctx, sink, { sink: 'sink', pageSize: 10, wants: () => true, ...policy })
  const circuit = new Circuit({ clock: ctx.clock, firstMs: 10, maxMs: 50 })
  const watch = new OutboxWatch(ctx.databases.primary.sql, 10)
  const stop = new AbortController()
  const said = new Map<number, (Error | undefined)[]>()
  const running = (await relays.all()).map((relay, shard) => {
    const mine: (Error | undefined)[] = []
    said.set(shard, mine)
    const onBlocked = (error: Error | undefined) => {
      mine.push(error)
    }
    return runOutbox(ctx, relay, { circuit, watch, retryMs: 10, maxRetryMs: 50, onBlocked }, stop.signal)
  })
  const end = async () => {
    stop.abort()
    await Promise.all(running)
  }
  onTestFinished(end)
  return { said, end }
}

describe('a shard that its sink’s policy lets wait for an event', () => {
  it('says so, goes on when it is healed, and says that; the others never stop', async () => {
    const ctx = await openContext(await newDatabases())
    const receiver = await Receiver.create(ctx)
    const { other } = await keysBesides(ctx, 'a')
    receiver.reject(2)
    await append(ctx, 'a', 1, 2, 3)
    const { said, end } = await run(ctx, await receiver.open(), { onReject: 'block' })
    const mine = said.get(await shardOf(ctx, 'a'))
    await expect.poll(() => mine?.length ?? 0).toBeGreaterThan(2)
    expect(mine?.every((error) => error instanceof RejectedEventError)).toBe(true)
    await append(ctx, other, 11)
    await expect.poll(() => receiver.numbers(other)).toEqual([11])
    receiver.heal()
    await expect.poll(() => receiver.numbers('a')).toEqual([1, 2, 3])
    await expect.poll(() => mine?.at(-1)).toBeUndefined()
    expect(receiver.tried.get(1)).toBe(1)
    expect(said.get(await shardOf(ctx, other))).toEqual([undefined])
    await end()
  })

  it('that does not wait says so once, since another process may have said that it does', async () => {
    const ctx = await openContext(await newDatabases())
    const receiver = await Receiver.create(ctx)
    const { said, end } = await run(ctx, await receiver.open(), { onReject: 'block' })
    await append(ctx, 'a', 1, 2)
    await expect.poll(() => receiver.numbers('a')).toEqual([1, 2])
    await expect.poll(() => [...said.values()]).toEqual([[undefined], [undefined], [undefined], [undefined]])
    await end()
  })
})
