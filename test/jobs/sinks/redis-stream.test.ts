import { randomUUID } from 'node:crypto'
import { inspect } from 'node:util'
import { Redis } from 'ioredis'
import { afterAll, describe, expect, inject, it, onTestFinished } from 'vitest'
import { FencedError, InvalidConfigError, SinkUnavailableError } from '../../../src/db/errors.ts'
import { redisStream } from '../../../src/jobs/sinks/redis-stream.ts'
import { startRedis } from '../../support/redis-server.ts'
import { eventOf, numbersIn, pageOf, StreamSinks, signal } from '../../support/redis-stream.ts'

const url = inject('redis')

describe.runIf(url !== undefined)('redisStream', () => {
  const client = new Redis(url ?? '')
  const sinks = new StreamSinks()
  const open = (stream: string) => sinks.open({ url: url ?? '', stream })
  const inStream = (stream: string) => numbersIn(client, stream)
  afterAll(async () => {
    await sinks.close()
    client.disconnect()
  })

  /** One that a test may stop and starve; it is gone after the test, however that ends. */
  async function ownServer() {
    const own = (await startRedis())!
    const there = new Redis(own.url)
    there.on('error', () => undefined)
    onTestFinished(async () => {
      there.disconnect()
      await own.stop()
    })
    return { own, there }
  }

  it('appends CloudEvents in order', async () => {
    const stream = randomUUID()
    const sink = await open(stream)
    const one = eventOf(7)
    expect(await sink.publish(pageOf({ events: [one, eventOf(8)] }), signal)).toEqual({ rejected: [] })
    const [[, fields]] = (await client.xrange(stream, '-', '+', 'COUNT', 1)) as [[string, string[]]]
    expect(fields[0]).toBe('event')
    expect(JSON.parse(fields[1] ?? '')).toEqual({
      specversion: '1.0',
      id: one.eventId,
      source: '/test',
      type: 'test.counted',
      subject: 'k',
      partitionkey: 'k',
      time: '2026-01-01T00:00:00Z',
      traceparent: '00-1-2-3',
      datacontenttype: 'application/json',
      data: { n: 7 },
    })
    expect(await inStream(stream)).toEqual([7, 8])
  })

  it('takes a page that comes again once, also when it was cut differently', async () => {
    const stream = randomUUID()
    const sink = await open(stream)
    await sink.publish(pageOf({ events: [eventOf(1), eventOf(2)] }), signal)
    await sink.publish(pageOf({ xid: 101n, events: [eventOf(1), eventOf(2), eventOf(3)] }), signal)
    await sink.publish(pageOf({ xid: 102n, events: [eventOf(1)] }), signal)
    await sink.publish(pageOf({ xid: 103n, position: 3n, events: [eventOf(4)] }), signal)
    expect(await inStream(stream)).toEqual([1, 2, 3, 4])
  })

  it('refuses a zombie by its lower xid, also after a new epoch', async () => {
    const stream = randomUUID()
    const sink = await open(stream)
    await sink.publish(pageOf({ xid: 200n, events: [eventOf(1)] }), signal)
    await expect(sink.publish(pageOf({ xid: 150n, events: [eventOf(2)] }), signal)).rejects.toThrow(
      FencedError,
    )
    await sink.publish(pageOf({ epoch: 2n, xid: 300n, events: [eventOf(2)] }), signal)
    await expect(
      sink.publish(pageOf({ epoch: 1n, xid: 250n, events: [eventOf(3)] }), signal),
    ).rejects.toThrow(FencedError)
    expect(await inStream(stream)).toEqual([1, 2])
  })

  it('forgets on a new epoch: an event with a low id that committed late is not taken for an old one', async () => {
    const stream = randomUUID()
    const sink = await open(stream)
    await sink.publish(pageOf({ events: [eventOf(5), eventOf(9)] }), signal)
    await sink.publish(pageOf({ epoch: 2n, xid: 101n, events: [eventOf(2)] }), signal)
    expect(await inStream(stream)).toEqual([5, 9, 2])
  })

  it('stops when the database went back in time', async () => {
    const stream = randomUUID()
    const sink = await open(stream)
    await sink.publish(pageOf({ epoch: 5n, events: [eventOf(1)] }), signal)
    await expect(
      sink.publish(pageOf({ epoch: 4n, xid: 500n, events: [eventOf(1)] }), signal),
    ).rejects.toThrow('went back in time')
  })

  it('reports what Redis refuses, and takes it when it comes again', async () => {
    const stream = randomUUID()
    const sink = await open(stream)
    await client.set(stream, 'not a stream')
    const events = [eventOf(1, 'a'), eventOf(2, 'a'), eventOf(3, 'b')]
    const { rejected } = await sink.publish(pageOf({ events }), signal)
    expect(rejected.map(({ event: e, reason }) => [e.id, /WRONGTYPE/.test(reason)])).toEqual([
      ['1', true],
      ['2', false],
      ['3', true],
    ])
    await client.del(stream)
    await sink.publish(pageOf({ xid: 101n, events }), signal)
    expect(await inStream(stream)).toEqual([1, 2, 3])
  })

  it('sends what a page holds, also when the memory of its encoding was used for another page since', async () => {
    const stream = randomUUID()
    const sink = await open(stream)
    const first = pageOf({ events: [eventOf(1)], encoded: sink.encode?.([eventOf(1)]) })
    await sink.publish(first, signal)
    const encoded = sink.encode?.([eventOf(2)])
    await sink.publish({ ...first, epoch: 2n, xid: 101n }, signal)
    await sink.publish(pageOf({ epoch: 3n, xid: 102n, events: [eventOf(2)], encoded }), signal)
    expect(await inStream(stream)).toEqual([1, 1, 2])
  })

  it('remembers no more than a page', async () => {
    const stream = randomUUID()
    const sink = await open(stream)
    for (let n = 0; n < 20; n++) {
      await sink.publish(
        pageOf({
          xid: BigInt(n + 1),
          position: BigInt(n * 10),
          events: [eventOf(n * 10 + 1), eventOf(n * 10 + 9)],
        }),
        signal,
      )
    }
    const [memory] = await client.keys(`{${stream}}:holdfast:*`)
    expect(await client.hlen(memory ?? '')).toBe(4)
  })

  it('remembers nothing of an earlier epoch', async () => {
    const stream = randomUUID()
    const sink = await open(stream)
    await client.set(stream, 'not a stream')
    await sink.publish(pageOf({ events: [eventOf(1, null, 70), eventOf(2, null, 90)] }), signal)
    await client.del(stream)
    await sink.publish(pageOf({ epoch: 2n, xid: 101n, events: [eventOf(3)] }), signal)
    const [memory] = await client.keys(`{${stream}}:holdfast:*`)
    expect(await client.hgetall(memory!)).toEqual({ generation: '1', epoch: '2', xid: '101', high: '3' })
  })

  it('is unavailable, not wrong, while its server is away, and goes on when it is back', async () => {
    const { own } = await ownServer()
    const sink = await sinks.open({ url: own.url, stream: 'away' })
    await sink.publish(pageOf({ events: [eventOf(1)] }), signal)
    await own.stop()
    await expect(sink.publish(pageOf({ xid: 101n, events: [eventOf(2)] }), signal)).rejects.toThrow(
      SinkUnavailableError,
    )
  })

  it('takes no more than once what a hanging server does after the connection was given up', async () => {
    const { own, there } = await ownServer()
    const sink = await sinks.open({ url: own.url, stream: 'hangs' })
    await sink.publish(pageOf({ events: [eventOf(1)] }), signal)
    const next = pageOf({ xid: 101n, position: 1n, events: [eventOf(2), eventOf(3)] })
    process.kill(own.pid, 'SIGSTOP')
    await expect(sink.publish(next, signal)).rejects.toThrow(SinkUnavailableError)
    process.kill(own.pid, 'SIGCONT')
    await expect.poll(() => numbersIn(there, 'hangs')).toEqual([1, 2, 3])
    await sink.publish({ ...next, xid: 102n }, signal)
    expect(await numbersIn(there, 'hangs')).toEqual([1, 2, 3])
  })

  it('forgets everything in a higher generation, in which ids, epochs and xids start anew', async () => {
    const stream = randomUUID()
    const sink = await open(stream)
    await sink.publish(pageOf({ epoch: 9n, xid: 900n, events: [eventOf(1), eventOf(2)] }), signal)
    await sink.publish(pageOf({ generation: 2, epoch: 1n, xid: 50n, events: [eventOf(3, 'k', 1)] }), signal)
    await sink.publish(pageOf({ generation: 2, epoch: 1n, xid: 51n, events: [eventOf(3, 'k', 1)] }), signal)
    expect(await inStream(stream)).toEqual([1, 2, 3])
  })

  it('refuses a relay of a lower generation, whatever its xid', async () => {
    const stream = randomUUID()
    const sink = await open(stream)
    await sink.publish(pageOf({ generation: 2, events: [eventOf(1)] }), signal)
    await expect(
      sink.publish(pageOf({ generation: 1, epoch: 9n, xid: 900n, events: [eventOf(2)] }), signal),
    ).rejects.toThrow(FencedError)
    expect(await inStream(stream)).toEqual([1])
  })

  it('tells to rebase when the database went back in time', async () => {
    const sink = await open(randomUUID())
    await sink.publish(pageOf({ epoch: 5n, events: [eventOf(1)] }), signal)
    const back = pageOf({ epoch: 4n, xid: 500n, events: [eventOf(1)] })
    await expect(sink.publish(back, signal)).rejects.toThrow('run `holdfast outbox rebase stream`')
    await expect(sink.publish({ ...back, xid: 1n }, signal)).rejects.toThrow('holdfast outbox rebase stream')
  })

  it('keeps the shards of a stream apart', async () => {
    const stream = randomUUID()
    const sink = await open(stream)
    await sink.publish(pageOf({ shard: 1, xid: 200n, events: [eventOf(1)] }), signal)
    await sink.publish(pageOf({ shard: 2, xid: 100n, events: [eventOf(2, 'k', 1)] }), signal)
    expect(await inStream(stream)).toEqual([1, 2])
  })

  it('gives the same answer to the same call, so that nothing is taken that was reported as refused', async () => {
    const stream = randomUUID()
    const sink = await open(stream)
    await client.set(stream, 'not a stream')
    const refused = pageOf({ events: [eventOf(1, 'a'), eventOf(2, null), eventOf(3, 'a')] })
    const answer = await sink.publish(refused, signal)
    await client.del(stream)
    expect(await sink.publish(refused, signal)).toEqual(answer)
    expect(await inStream(stream)).toEqual([])
    expect(await sink.publish({ ...refused, xid: 101n }, signal)).toEqual({ rejected: [] })
    expect(await inStream(stream)).toEqual([1, 2, 3])
  })

  it('takes what was refused and is not in the next attempt for neither taken nor refused', async () => {
    const stream = randomUUID()
    const sink = await open(stream)
    await client.set(stream, 'not a stream')
    const events = [eventOf(1, 'a'), eventOf(2, 'b')]
    await sink.publish(pageOf({ events }), signal)
    await client.del(stream)
    await sink.publish(pageOf({ xid: 101n, events: events.slice(1) }), signal)
    await sink.publish(pageOf({ xid: 102n, position: 2n, events: [eventOf(3, 'a')] }), signal)
    expect(await inStream(stream)).toEqual([2, 3])
    const [memory] = await client.keys(`{${stream}}:holdfast:*`)
    expect(await client.hlen(memory!)).toBe(4)
  })

  it('sends a large page in parts, and closes a key for all of them', async () => {
    const stream = randomUUID()
    const sink = await open(stream)
    const large = (n: number, key: string | null) =>
      eventOf(n, key, n, { data: { n, text: 'ü'.repeat(1_500_000) } })
    const events = [large(1, 'a'), large(2, 'b'), large(3, 'a'), large(4, null), large(5, 'b')]
    const encoded = sink.encode!(events)
    expect(encoded).toHaveLength(2)
    await client.set(stream, 'not a stream')
    const { rejected } = await sink.publish(pageOf({ events, encoded }), signal)
    expect(rejected.map(({ event, reason }) => [event.id, reason.split(' ')[0]])).toEqual([
      ['1', 'WRONGTYPE'],
      ['2', 'WRONGTYPE'],
      ['3', 'waits'],
      ['4', 'WRONGTYPE'],
      ['5', 'waits'],
    ])
    await client.del(stream)
    await sink.publish(pageOf({ xid: 101n, events }), signal)
    expect(await inStream(stream)).toEqual([1, 2, 3, 4, 5])
  })

  it('appends byte for byte what an event is, of any length and script', async () => {
    const stream = randomUUID()
    const sink = await open(stream)
    const texts = [
      '',
      'a',
      'ü',
      '日本語',
      '😀'.repeat(3_000),
      'x'.repeat(70_000),
      'é'.repeat(70_000),
      '\u2028',
    ]
    const events = texts.map((text, i) => eventOf(i + 1, `ключ ${i}`, i + 1, { data: { n: i + 1, text } }))
    await sink.publish(pageOf({ events, encoded: sink.encode!(events) }), signal)
    const entries = await client.xrange(stream, '-', '+')
    expect(entries.map(([, [, json]]) => json)).toEqual(events.map((event) => event.json))
  })

  it('is unavailable, and rejects nothing, when Redis has no memory left', async () => {
    const { own, there } = await ownServer()
    const sink = await sinks.open({ url: own.url, stream: 'full' })
    await sink.publish(pageOf({ events: [eventOf(1)] }), signal)
    for (const next of [
      pageOf({ xid: 101n, position: 1n, events: [eventOf(2)] }),
      pageOf({ xid: 102n, epoch: 2n, events: [eventOf(2)] }),
    ]) {
      await there.config('SET', 'maxmemory', 1)
      await expect(sink.publish(next, signal)).rejects.toThrow(/OOM/)
      await there.config('SET', 'maxmemory', 0)
    }
    await sink.publish(pageOf({ xid: 103n, epoch: 2n, events: [eventOf(2)] }), signal)
    expect(await numbersIn(there, 'full')).toEqual([1, 2])
  })

  it('is unavailable, and rejects nothing, while its user may not append', async () => {
    const { own, there } = await ownServer()
    await there.acl('SETUSER', 'sink', 'on', '>p%4', '~*', '+@all')
    const sink = await sinks.open({ url: own.url.replace('//', '//sink:p%254@'), stream: 'rights' })
    await sink.publish(pageOf({ events: [eventOf(1)] }), signal)
    await there.acl('SETUSER', 'sink', '-xadd')
    const next = pageOf({ xid: 101n, position: 1n, events: [eventOf(2), eventOf(3)] })
    await expect(sink.publish(next, signal)).rejects.toThrow(SinkUnavailableError)
    await there.acl('SETUSER', 'sink', '+xadd')
    await sink.publish({ ...next, xid: 102n }, signal)
    expect(await numbersIn(there, 'rights')).toEqual([1, 2, 3])
  })

  it('brings its script again to a server that lost it', async () => {
    const { own, there } = await ownServer()
    const sink = await sinks.open({ url: own.url, stream: 'flushed' })
    await sink.publish(pageOf({ events: [eventOf(1)] }), signal)
    await there.script('FLUSH')
    await sink.publish(pageOf({ xid: 101n, position: 1n, events: [eventOf(2)] }), signal)
    expect(await numbersIn(there, 'flushed')).toEqual([1, 2])
  })

  it('keeps about the length that it was told', async () => {
    const stream = randomUUID()
    const sink = await sinks.open({ url: url!, stream, maxLength: 100 })
    const events = Array.from({ length: 1_000 }, (_, i) => eventOf(i + 1))
    await sink.publish(pageOf({ events }), signal)
    expect((await inStream(stream)).at(-1)).toBe(1_000)
    expect(await client.xlen(stream)).toBeLessThan(300)
  })

  it('lets no event into its errors', async () => {
    const stream = randomUUID()
    const sink = await open(stream)
    await client.set(`{${stream}}:holdfast:0123456789abcdef:stream:0`, 'no hash')
    const secret = eventOf(1, 'k', 1, { data: { n: 1, card: '4929 1234' } })
    const error: unknown = await sink.publish(pageOf({ events: [secret] }), signal).catch((e: unknown) => e)
    expect(error).toBeInstanceOf(SinkUnavailableError)
    expect(inspect(error, { depth: Infinity })).not.toContain('4929')
  })

  it('has the policy and the limit that it was given', () => {
    const given = redisStream({
      url: url!,
      onReject: 'block',
      maxAttempts: 3,
      afterDead: 'flow',
      maxEventBytes: 1_000,
    })
    expect(given.policy).toEqual({ onReject: 'block', maxAttempts: 3, afterDead: 'flow' })
    expect(given.maxEventBytes).toBe(1_000)
    expect(redisStream({ url: url! })).toMatchObject({ policy: {}, maxEventBytes: 64 * 1024 * 1024 })
  })

  it.each([
    { stream: '' },
    { stream: '{}a' },
    { stream: 'a}' },
    { maxLength: -1 },
    { maxEventBytes: 0 },
    { maxEventBytes: 513 * 1024 * 1024 },
    { url: [] },
    { url: 'localhost:6379' },
    { url: ['redis://127.0.0.1:1', 'http://127.0.0.1:2'] },
  ])('refuses options that make no sense: %o', (wrong) => {
    expect(() => redisStream({ url: url!, ...wrong })).toThrow(InvalidConfigError)
  })
})
