import { once } from 'node:events'
import { createServer } from 'node:net'
import { type JetStreamManager, jetstreamManager, type StreamConfig } from '@nats-io/jetstream'
import { connect, type NatsConnection } from '@nats-io/transport-node'
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest'
import { InvalidConfigError, SinkUnavailableError } from '../../../src/db/errors.ts'
import { type NatsOptions, nats } from '../../../src/jobs/sinks/nats.ts'
import type { OpenSink } from '../../../src/jobs/sinks/sink.ts'
import { type NatsServer, natsProgram, startNats } from '../../support/nats-server.ts'
import {
  expectedOrder,
  numbered,
  numberedOfKeys,
  orderOfKeys,
  pageOf,
  sinkContextOf,
  stopOf,
} from '../../support/outbox-page.ts'

const maxPayload = 20_000

describe.runIf(natsProgram())('nats', () => {
  const signal = new AbortController().signal
  const opened: OpenSink[] = []
  let server: NatsServer
  let client: NatsConnection
  let manager: JetStreamManager
  let streams = 0

  beforeAll(async () => {
    server = (await startNats({ maxPayload }))!
    await connectClient()
  })
  afterEach(async () => {
    await Promise.all(opened.splice(0).map((sink) => sink.close()))
  })
  afterAll(async () => {
    await server?.remove()
    await client?.close()
  })

  async function connectClient(): Promise<void> {
    client = await connect({ servers: server.address })
    manager = await jetstreamManager(client)
  }

  async function stream(config: Partial<StreamConfig> = {}): Promise<string> {
    const name = `S${++streams}`
    await manager.streams.add({ name, subjects: [`${name}.>`], ...config })
    return name
  }

  async function open(
    name: string,
    options: Partial<NatsOptions> = {},
    worstRetryMs = 95_000,
  ): Promise<OpenSink> {
    const subject: NatsOptions['subject'] = ({ type }) => `${name}.${type}`
    const sink = nats({ servers: server.address, stream: name, subject, ...options })
    const sinkOpen = await sink.open(sinkContextOf({ worstRetryMs }))
    opened.push(sinkOpen)
    return sinkOpen
  }

  type Stored = { n: number; key: string; id: string; subject: string; contentType: string; source: string }

  async function stored(name: string): Promise<Stored[]> {
    const { state } = await manager.streams.info(name)
    const messages: Awaited<ReturnType<typeof manager.streams.getMessage>>[] = []
    for (let first = 1; first <= state.messages; first += 100) {
      const count = Math.min(100, state.messages - first + 1)
      const some = Array.from({ length: count }, (_, i) =>
        manager.streams.getMessage(name, { seq: first + i }),
      )
      messages.push(...(await Promise.all(some)))
    }
    return messages.map((message) => {
      const { data, partitionkey, source } = message!.json<{
        data: { n: number }
        partitionkey: string
        source: string
      }>()
      const { header, subject } = message!
      return {
        n: data.n,
        key: partitionkey,
        id: header.get('Nats-Msg-Id'),
        subject,
        contentType: header.get('content-type'),
        source,
      }
    })
  }
  const numbers = async (name: string) => (await stored(name)).map(({ n }) => n)

  it('stores CloudEvents in order, with their ids', async () => {
    const name = await stream()
    const sink = await open(name)
    const events = [numbered(1), numbered(2, { type: 'test.other' }), numbered(3)]
    expect(await sink.publish(pageOf(events), signal)).toEqual({ rejected: [] })
    expect(await stored(name)).toEqual(
      events.map(({ id, eventId, type }) => ({
        n: Number(id),
        key: 'k',
        id: eventId,
        subject: `${name}.${type}`,
        contentType: 'application/cloudevents+json',
        source: '/test',
      })),
    )
  })

  it('publishes to events.<type> unless told otherwise', async () => {
    const name = await stream({ subjects: ['events.>'] })
    const sink = await nats({ servers: ['127.0.0.1:1', server.address], stream: name }).open(sinkContextOf())
    opened.push(sink)
    await sink.publish(pageOf([numbered(1)]), signal)
    expect((await stored(name)).map(({ subject }) => subject)).toEqual(['events.test.counted'])
  })

  it('holds each event once when the page comes again, also from another process', async () => {
    const name = await stream()
    const events = numberedOfKeys(50, 5)
    const first = await open(name)
    const second = await open(name)
    await first.publish(pageOf(events), signal)
    await first.publish(pageOf(events), signal)
    await Promise.all([first.publish(pageOf(events), signal), second.publish(pageOf(events), signal)])
    expect((await numbers(name)).toSorted((a, b) => a - b)).toEqual(events.map(({ id }) => Number(id)))
  })

  it('lets a replay arrive again, once', async () => {
    const name = await stream()
    const sink = await open(name)
    const events = [numbered(1), numbered(2)]
    await sink.publish(pageOf(events), signal)
    const replay = pageOf(events, { replay: true, epoch: 2n })
    await sink.publish(replay, signal)
    await sink.publish(replay, signal)
    expect(await numbers(name)).toEqual([1, 2, 1, 2])
  })

  it('rejects for good what is larger than the server takes, and with it what follows of its key', async () => {
    const name = await stream()
    const sink = await open(name)
    const large = numbered(1, {
      partitionkey: 'a',
      data: { n: 1, x: 'x'.repeat(maxPayload) },
    })
    const events = [large, numbered(2, { partitionkey: 'b' }), numbered(3, { partitionkey: 'a' })]
    const { rejected, stopped } = await sink.publish(pageOf(events), signal)
    expect(stopped).toBeUndefined()
    expect(rejected.map(({ event, permanent }) => [event.id, permanent === true])).toEqual([
      ['1', true],
      ['3', false],
    ])
    expect(rejected[0]?.reason).toContain(`takes ${maxPayload}`)
    expect(await numbers(name)).toEqual([2])
  })

  it('counts to the byte as the server does', async () => {
    const name = await stream({ max_msg_size: 2_000 })
    const sink = await open(name)
    const sized = (id: number, length: number) =>
      numbered(id, { partitionkey: `k${id}`, data: { n: id, x: 'x'.repeat(length) } })
    const [probe] = (await sink.publish(pageOf([sized(10, 5_000)]), signal)).rejected
    const excess = Number(/it has (\d+) bytes/.exec(probe?.reason ?? '')?.[1]) - 2_000
    const events = [sized(11, 5_000 - excess), sized(12, 5_000 - excess + 1)]
    const { rejected } = await sink.publish(pageOf(events), signal)
    expect(rejected.map(({ event, permanent }) => [event.id, permanent])).toEqual([['12', true]])
    expect(await numbers(name)).toEqual([11])
  })

  it('rejects for good what the stream itself refuses for its size', async () => {
    const name = await stream()
    const sink = await open(name)
    await sink.publish(pageOf([numbered(1)]), signal)
    await manager.streams.update(name, { max_msg_size: 1_000 })
    const large = numbered(2, {
      partitionkey: 'a',
      data: { n: 2, x: 'x'.repeat(1_000) },
    })
    const { rejected, stopped } = await sink.publish(pageOf([large, numbered(3)]), signal)
    expect(stopped).toBeUndefined()
    expect(rejected.map(({ event, permanent }) => [event.id, permanent])).toEqual([['2', true]])
    expect(await numbers(name)).toEqual([1, 3])
  })

  it('rejects a subject outside of the stream, and takes it once the stream has it', async () => {
    const name = await stream()
    const sink = await open(name, {
      subject: ({ id }) => (id === '1' ? `elsewhere.${name}` : `${name}.inside`),
    })
    const outside = numbered(1, { partitionkey: 'a' })
    const events = [outside, numbered(2, { partitionkey: 'a' }), numbered(3, { partitionkey: 'b' })]
    const { rejected } = await sink.publish(pageOf(events), signal)
    expect(rejected.map(({ event, permanent }) => [event.id, permanent === true])).toEqual([
      ['1', false],
      ['2', false],
    ])
    expect(rejected[0]?.reason).toContain(`does not capture subject elsewhere.${name}`)
    await manager.streams.update(name, { subjects: [`${name}.>`, `elsewhere.${name}`] })
    expect(await sink.publish(pageOf([outside]), signal)).toEqual({ rejected: [] })
    expect(await numbers(name)).toEqual([3, 1])
  })

  it('lets no other stream take an event after the subject has moved there', async () => {
    const name = await stream()
    const sink = await open(name)
    await sink.publish(pageOf([numbered(1)]), signal)
    await manager.streams.update(name, { subjects: [`${name}.kept`] })
    const other = await stream({ subjects: [`${name}.test.*`] })
    const { rejected, stopped } = await sink.publish(pageOf([numbered(2)]), signal)
    expect(stopped).toBeUndefined()
    expect(rejected.map(({ event, permanent }) => [event.id, permanent === true])).toEqual([['2', false]])
    expect(await numbers(other)).toEqual([])
  })

  it('never sends an event to something else that listens, such as the API that deletes the stream', async () => {
    const name = await stream()
    const sink = await open(name, { subject: () => `$JS.API.STREAM.DELETE.${name}` })
    const { rejected } = await sink.publish(pageOf([numbered(1)]), signal)
    expect(rejected).toHaveLength(1)
    expect(await numbers(name)).toEqual([])
  })

  it.each(['white space', 'wild.*', 'wild.>', 'empty..token', ''])(
    'rejects for good an event whose subject is %j',
    async (type) => {
      const name = await stream()
      const sink = await open(name)
      const events = [numbered(1, { type, partitionkey: 'a' }), numbered(2)]
      const { rejected } = await sink.publish(pageOf(events), signal)
      expect(rejected.map(({ event, permanent }) => [event.id, permanent])).toEqual([['1', true]])
      expect(await numbers(name)).toEqual([2])
    },
  )

  it('rejects the event on which the function for the subject fails', async () => {
    const name = await stream()
    const sink = await open(name, {
      subject: ({ id }) => {
        if (id === '1') throw new Error('no such customer')
        return `${name}.x`
      },
    })
    const { rejected } = await sink.publish(pageOf([numbered(1), numbered(2, { partitionkey: 'b' })]), signal)
    expect(rejected.map(({ event, reason }) => [event.id, reason])).toEqual([
      ['1', 'subject() failed on it: no such customer'],
    ])
    expect(await numbers(name)).toEqual([2])
  })

  it('rejects what a full subject does not take, and stops at a full stream', async () => {
    const limits = { discard: 'new', max_msgs: 2, max_msgs_per_subject: 1 } as Partial<StreamConfig>
    const name = await stream({ ...limits, discard_new_per_subject: true })
    const sink = await open(name)
    const of = (id: number, type: string) => numbered(id, { type, partitionkey: type })
    await sink.publish(pageOf([of(1, 'a')]), signal)
    const { rejected, stopped } = await sink.publish(pageOf([of(2, 'a'), of(3, 'b')]), signal)
    expect(stopped).toBeUndefined()
    expect(rejected.map(({ event, permanent }) => [event.id, permanent === true])).toEqual([['2', false]])
    const full = await sink.publish(pageOf([of(4, 'c')]), signal)
    expect(full.stopped?.error).toBeInstanceOf(SinkUnavailableError)
    expect(await numbers(name)).toEqual([1, 3])
  })

  it('is unavailable while its stream recognises repeats for too short a time, and says what to set', async () => {
    const name = await stream({ duplicate_window: 60e9 })
    const sink = await open(name, {}, 95_000)
    const publishing = sink.publish(pageOf([numbered(1)]), signal)
    await expect(publishing).rejects.toThrow(SinkUnavailableError)
    await expect(publishing).rejects.toThrow('duplicate_window to at least 95 s')
    expect(await numbers(name)).toEqual([])
    await manager.streams.update(name, { duplicate_window: 95e9 })
    expect(await sink.publish(pageOf([numbered(1)]), signal)).toEqual({ rejected: [] })
    expect(await numbers(name)).toEqual([1])
  })

  it('is unavailable while its stream is missing or captures nothing of a fixed subject', async () => {
    const sink = await open('LATER', { subject: 'later.all' })
    await expect(sink.publish(pageOf([numbered(1)]), signal)).rejects.toThrow('no stream LATER; create it')
    await manager.streams.add({ name: 'LATER', subjects: ['later.some'] })
    const publishing = sink.publish(pageOf([numbered(1)]), signal)
    await expect(publishing).rejects.toThrow(SinkUnavailableError)
    await expect(publishing).rejects.toThrow('does not capture subject later.all')
    await manager.streams.update('LATER', { subjects: ['later.*'] })
    await sink.publish(pageOf([numbered(1)]), signal)
    expect(await numbers('LATER')).toEqual([1])
    await manager.streams.update('LATER', { subjects: ['later.some'] })
    expect(await stopOf(sink.publish(pageOf([numbered(2)]), signal))).toBeInstanceOf(SinkUnavailableError)
  })

  it('notices that its stream was deleted', async () => {
    const name = await stream()
    const sink = await open(name)
    await sink.publish(pageOf([numbered(1)]), signal)
    await manager.streams.delete(name)
    const { stopped } = await sink.publish(pageOf([numbered(2)]), signal)
    expect(stopped?.error).toBeInstanceOf(SinkUnavailableError)
    await expect(sink.publish(pageOf([numbered(2)]), signal)).rejects.toThrow(`no stream ${name}`)
  })

  it('waits for no server longer than its signal', async () => {
    const silent = createServer(() => undefined)
    silent.listen(0, '127.0.0.1')
    await once(silent, 'listening')
    const address = silent.address() as { port: number }
    const sink = await open('ANY', { servers: `127.0.0.1:${address.port}` })
    const stop = new AbortController()
    const publishing = sink.publish(pageOf([numbered(1)]), stop.signal)
    const [socket] = await once(silent, 'connection')
    stop.abort()
    await expect(publishing).rejects.toThrow('stopped before')
    ;(socket as { destroy(): void }).destroy()
    silent.close()
  })

  it('is unavailable while the server is stopped, and works again after its start', async () => {
    const name = await stream()
    const sink = await open(name)
    await sink.publish(pageOf([numbered(1)]), signal)
    await client.close()
    await server.stop()
    expect(await stopOf(sink.publish(pageOf([numbered(2)]), signal))).toBeInstanceOf(SinkUnavailableError)
    await server.start()
    await connectClient()
    await expect
      .poll(async () => sink.publish(pageOf([numbered(3)]), signal).catch(() => 'unavailable'))
      .toEqual({ rejected: [] })
    expect(await numbers(name)).toEqual([1, 3])
  })

  it('connects anew before it sends when the connection was lost while there was nothing to send', async () => {
    const name = await stream()
    const sink = await open(name)
    await sink.publish(pageOf([numbered(1)]), signal)
    await client.close()
    await server.stop()
    await server.start()
    await connectClient()
    expect(await sink.publish(pageOf([numbered(2)]), signal)).toEqual({ rejected: [] })
    expect(await numbers(name)).toEqual([1, 2])
  })

  it('stores each event once and in order per key when the server was killed within a page', async () => {
    const name = await stream()
    const events = numberedOfKeys(2_000, 100)
    let sent = 0
    let killed: Promise<void> | undefined
    const sink = await open(name, {
      subject: () => {
        if (++sent === 1_000) killed = server.kill()
        return `${name}.x`
      },
    })
    const { stopped } = await sink.publish(pageOf(events), signal)
    await killed
    await client.close()
    await server.start()
    await connectClient()
    const taken = stopped?.taken.map(({ id }) => Number(id)) ?? []
    expect(stopped?.error).toBeInstanceOf(SinkUnavailableError)
    expect(taken.length).toBeGreaterThan(0)
    expect(taken.length).toBeLessThan(events.length)
    const survived = new Set(await numbers(name))
    expect(taken.filter((n) => !survived.has(n))).toEqual([])

    await expect
      .poll(async () => sink.publish(pageOf(events), signal).catch(() => 'unavailable'))
      .toEqual({ rejected: [] })
    const all = await stored(name)
    expect(all).toHaveLength(events.length)
    expect(orderOfKeys(all)).toEqual(expectedOrder(2_000, 100))
  })

  it('keeps the password out of what it says', async () => {
    const own = await startNats({ user: 'relay', pass: 'right-pass' })
    const options = { servers: own!.address, stream: 'ANY' }
    const wrong = await nats({ ...options, connection: { user: 'relay', pass: 'wrong-pass' } }).open(
      sinkContextOf(),
    )
    const refused = await stopOf(wrong.publish(pageOf([numbered(1)]), signal))
    expect(refused).toBeInstanceOf(SinkUnavailableError)
    expect(String(refused)).toMatch(/authorization/i)
    expect(String(refused)).not.toContain('wrong-pass')
    const right = await nats({ ...options, connection: { user: 'relay', pass: 'right-pass' } }).open(
      sinkContextOf(),
    )
    await expect(right.publish(pageOf([numbered(1)]), signal)).rejects.toThrow('no stream ANY')
    await own!.remove()
  })

  it('refuses options that make no sense, all at once', () => {
    const wrong = { servers: [], stream: 'a.b', subject: 'a.*', maxPending: 0 }
    expect(() => nats(wrong)).toThrow(InvalidConfigError)
    expect(() => nats(wrong)).toThrow(/servers[^]*stream[^]*subject[^]*maxPending/)
  })
})
