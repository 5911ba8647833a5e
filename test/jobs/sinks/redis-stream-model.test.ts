import { randomUUID } from 'node:crypto'
import fc from 'fast-check'
import { Redis } from 'ioredis'
import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest'
import { type RedisServer, startRedis } from '../../support/redis-server.ts'
import { numbersIn, StreamSinks } from '../../support/redis-stream.ts'
import { type OnReject, type PublishStep, RelayModel } from '../../support/relay-model.ts'

type Fault = 'wrong type' | 'no memory' | 'none'
type Step =
  | { append: (string | null)[] }
  | { publish: PublishStep & { heal: boolean } }
  | { arrivesLate: number }
  | { fault: Fault }
  | 'restore'

const publish = fc.record({
  cut: fc.integer({ min: 1, max: 8 }),
  crash: fc.constantFrom('at-once' as const, 'before-commit' as const, 'never' as const, 'never' as const),
  redrive: fc.boolean(),
  firstId: fc.integer({ min: 1, max: 60 }),
  heal: fc.boolean(),
})
const steps = fc.array(
  fc.oneof(
    {
      weight: 3,
      arbitrary: fc
        .array(fc.constantFrom('a', 'b', 'c', null), { minLength: 1, maxLength: 12 })
        .map((append): Step => ({ append })),
    },
    { weight: 8, arbitrary: publish.map((one): Step => ({ publish: one })) },
    { weight: 3, arbitrary: fc.nat(6).map((which): Step => ({ arrivesLate: which })) },
    {
      weight: 2,
      arbitrary: fc
        .constantFrom<Fault>('wrong type', 'no memory', 'none', 'none')
        .map((fault): Step => ({ fault })),
    },
    { weight: 1, arbitrary: fc.constant<Step>('restore') },
  ),
  { maxLength: 60, size: 'max' },
)

describe.runIf(inject('redis') !== undefined)('redisStream under a relay that has every misfortune', () => {
  const sinks = new StreamSinks()
  let server: RedisServer
  let client: Redis

  beforeAll(async () => {
    // Its own: the tests take its memory away.
    server = (await startRedis())!
    client = new Redis(server.url)
  })
  afterAll(async () => {
    await sinks.close()
    client.disconnect()
    await server.stop()
  })

  /** A stream whose key holds something else, and a server that has no memory left, when told so. */
  class FaultyStream {
    readonly name = randomUUID()
    #wrongType = false

    async set(fault: Fault): Promise<void> {
      await client.config('SET', 'maxmemory', fault === 'no memory' ? 1 : 0)
      if (this.#wrongType === (fault === 'wrong type')) return
      this.#wrongType = !this.#wrongType
      if (this.#wrongType) {
        if (await client.exists(this.name)) await client.rename(this.name, `${this.name}:aside`)
        await client.set(this.name, 'not a stream')
      } else {
        await client.del(this.name)
        if (await client.exists(`${this.name}:aside`)) await client.rename(`${this.name}:aside`, this.name)
      }
    }

    numbers(): Promise<number[]> {
      return numbersIn(client, this.#wrongType ? `${this.name}:aside` : this.name)
    }
  }

  it.each<OnReject>(['park', 'block', 'skip'])(
    'has every event once and in the order of its key, onReject %s',
    async (onReject) => {
      const property = fc.asyncProperty(steps, (list) => play(list, onReject))
      expect(await fc.check(property, { numRuns: 150 })).toMatchObject({ failed: false })
    },
  )

  async function play(list: readonly Step[], onReject: OnReject): Promise<void> {
    const stream = new FaultyStream()
    const sink = await sinks.open({ url: server.url, stream: stream.name })
    const relay = new RelayModel(sink, onReject)
    const keys: (string | null)[] = []
    /** how often an event must be there, where that is not once: a restored database sends again what it does not know */
    const expected = new Map<number, number>()
    const restoredAt = [0]

    for (const step of list) {
      if (step === 'restore') {
        const there = await stream.numbers()
        restoredAt.push(there.length)
        for (const n of relay.uncommitted) expected.set(n, there.filter((one) => one === n).length + 1)
        relay.restore()
      } else if ('append' in step) {
        keys.push(...step.append)
        relay.append(step.append)
      } else if ('publish' in step) {
        // A relay that skips and then crashes forgets that it did; only then may the skipped one come behind a later one.
        const heal = step.publish.heal && onReject !== 'skip'
        await relay.publish(step.publish, heal ? () => stream.set('none') : undefined)
      } else if ('fault' in step) await stream.set(step.fault)
      else await relay.arrivesLate(step.arrivesLate)
    }
    await stream.set('none')
    for (let i = 0; !relay.idle && i < 1_000; i++) {
      await relay.publish({ cut: 8, crash: 'never', redrive: true, firstId: 1 })
    }
    await sink.close()

    const there = await stream.numbers()
    const counts = keys.map((_, i) => there.filter((n) => n === i + 1).length)
    const due = keys.map((_, i) => (expected.get(i + 1) ?? 1) - (relay.dead.has(i + 1) ? 1 : 0))
    expect(counts).toEqual(due)
    for (const [i, from] of restoredAt.entries()) {
      const sinceRestore = there.slice(from, restoredAt[i + 1])
      for (const key of ['a', 'b', 'c']) {
        const ofKey = sinceRestore.filter((n) => keys[n - 1] === key)
        expect(ofKey).toEqual(ofKey.toSorted((a, b) => a - b))
      }
    }
  }
})
