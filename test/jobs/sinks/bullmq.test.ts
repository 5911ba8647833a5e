import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { connect, createServer, type Server, type Socket } from 'node:net'
import { inspect } from 'node:util'
import { type Job, Queue, UnrecoverableError, Worker } from 'bullmq'
import { Redis } from 'ioredis'
import { pino } from 'pino'
import { afterAll, afterEach, describe, expect, inject, it, vi } from 'vitest'
import { Databases } from '../../../src/db/databases.ts'
import { InvalidConfigError, SinkUnavailableError } from '../../../src/db/errors.ts'
import type { OutboxEvent } from '../../../src/db/outbox-event.ts'
import { systemClock } from '../../../src/jobs/clock.ts'
import { type BullmqOptions, bullmq } from '../../../src/jobs/sinks/bullmq.ts'
import { waitsBehind } from '../../../src/jobs/sinks/publish-by-key.ts'
import { messageIdOf, type OpenSink, type Page, type Sink } from '../../../src/jobs/sinks/sink.ts'
import { numbered, pageOf } from '../../support/outbox-page.ts'
import { startRedis } from '../../support/redis-server.ts'

const url = inject('redis')

describe.runIf(url !== undefined)('bullmq', () => {
  const redis = url ?? ''
  const client = new Redis(redis)
  const { signal } = new AbortController()
  const databases = new Databases({ primary: 'postgres://127.0.0.1:1/none' })
  const closing: (() => Promise<unknown>)[] = []
  afterEach(async () => {
    for (const close of closing.splice(0).toReversed()) await close()
  })
  afterAll(async () => {
    client.disconnect()
    await databases.end()
  })

  const openWith = (sink: Sink, worstRetryMs = 1_000): Promise<OpenSink> =>
    sink.open({
      databases,
      installation: '0123456789abcdef',
      name: 'jobs',
      log: pino({ level: 'silent' }),
      clock: systemClock,
      worstRetryMs,
    })
  async function open(queue: string, options: Partial<BullmqOptions> = {}): Promise<OpenSink> {
    const sink = await openWith(bullmq({ url: redis, queue, ...options }))
    closing.push(() => sink.close())
    return sink
  }
  function look(name: string): Queue {
    const queue = new Queue(name, { connection: { url: redis } })
    closing.push(() => queue.close())
    return queue
  }
  /** Works one job at a time, and remembers what it ran. */
  function work(name: string, run: (n: number) => Promise<void> = async () => undefined) {
    const ran: number[] = []
    const worker = new Worker(
      name,
      async (job: Job<{ data: { n: number } }>) => {
        ran.push(job.data.data.n)
        await run(job.data.data.n)
      },
      { connection: { url: redis, maxRetriesPerRequest: null } },
    )
    closing.push(() => worker.close())
    return { ran, worker }
  }

  const event = (id: number, key: string | null = 'k'): OutboxEvent =>
    numbered(id, {
      partitionkey: key,
      ...(key === null ? {} : { subject: key }),
      data: { n: id, text: 'the-payload' },
      traceparent: undefined,
    })
  const page = (events: OutboxEvent[], fields: Partial<Page> = {}): Page =>
    pageOf(events, { sink: 'jobs', epoch: 7n, ...fields })
  const waiting = async (queue: Queue) =>
    (await queue.getJobs(['waiting'], 0, -1, true)).map((job) => (job.data as { data: { n: number } }).data.n)

  it('adds a job per event, in order, with what the options say', async () => {
    const name = randomUUID()
    const sink = await open(name, {
      keepCompletedMs: 90_500,
      keepFailedMs: 120_000,
      jobOptions: { attempts: 3, backoff: { type: 'exponential', delay: 100 } },
    })
    const one = event(1)
    expect(await sink.publish(page([one, event(2, 'b'), event(3)]), signal)).toEqual({ rejected: [] })
    // The queue's settings are its owner's; a Queue writes this field where it writes them.
    expect(await client.hget(`bull:${name}:meta`, 'version')).toBeNull()
    const queue = look(name)
    expect(await waiting(queue)).toEqual([1, 2, 3])
    const job = await queue.getJob(one.eventId)
    expect(job).toMatchObject({
      name: 'test.counted',
      data: {
        specversion: '1.0',
        id: one.eventId,
        source: '/test',
        type: 'test.counted',
        subject: 'k',
        partitionkey: 'k',
        time: '2026-01-01T00:00:00Z',
        datacontenttype: 'application/json',
        data: { n: 1, text: 'the-payload' },
      },
      opts: {
        attempts: 3,
        backoff: { type: 'exponential', delay: 100 },
        removeOnComplete: { age: 91 },
        removeOnFail: { age: 120 },
      },
    })
  })

  it('takes prefix, name and priority from the options', async () => {
    const name = randomUUID()
    const sink = await open(name, {
      prefix: 'app:{own}',
      jobName: ({ type, subject }) => `${type}/${subject}`,
      jobOptions: { priority: 2 },
    })
    await sink.publish(page([event(1)]), signal)
    const queue = new Queue(name, { connection: { url: redis }, prefix: 'app:{own}' })
    closing.push(() => queue.close())
    const [job] = await queue.getPrioritized()
    expect(job).toMatchObject({ name: 'test.counted/k', priority: 2 })
  })

  it('adds each job of a page that comes again once: while it waits, after it completed, after it failed', async () => {
    const name = randomUUID()
    const sink = await open(name)
    const events = [event(1), event(2), event(3)]
    await sink.publish(page(events), signal)
    await sink.publish(page(events, { xid: 101n }), signal)
    const { ran, worker } = work(name, async (n) => {
      if (n === 2) throw new UnrecoverableError('not this one')
    })
    const queue = look(name)
    await expect.poll(() => queue.getJobCounts('completed', 'failed')).toEqual({ completed: 2, failed: 1 })
    await sink.publish(page([...events, event(4)], { xid: 102n }), signal)
    await expect.poll(() => queue.getCompletedCount()).toBe(3)
    await worker.close()
    expect(ran).toEqual([1, 2, 3, 4])
    expect(await queue.getJobCounts('waiting', 'active', 'delayed', 'failed')).toEqual({
      waiting: 0,
      active: 0,
      delayed: 0,
      failed: 1,
    })
  })

  it('adds what is replayed on purpose again, and that once', async () => {
    const name = randomUUID()
    const sink = await open(name)
    const events = [event(1), event(2)]
    await sink.publish(page(events), signal)
    const { ran, worker } = work(name)
    const queue = look(name)
    await expect.poll(() => queue.getCompletedCount()).toBe(2)
    await sink.publish(page(events, { replay: true, epoch: 8n }), signal)
    await sink.publish(page(events, { replay: true, epoch: 8n, xid: 101n }), signal)
    await expect.poll(() => queue.getCompletedCount()).toBe(4)
    await worker.close()
    expect(ran).toEqual([1, 2, 1, 2])
    const ids = (await queue.getCompleted()).map(({ id }) => id)
    expect(ids).toContain(messageIdOf({ replay: true, epoch: 8n }, events[0]!))
  })

  it('adds a page of a thousand events in their order', async () => {
    const name = randomUUID()
    const sink = await open(name)
    const numbers = Array.from({ length: 1_000 }, (_, n) => n)
    await sink.publish(page(numbers.map((n) => event(n, n % 3 === 0 ? null : `key ${n % 7}`))), signal)
    expect(await waiting(look(name))).toEqual(numbers)
  })

  it('rejects the event for whose job there is no place, and takes it when there is', async () => {
    const name = randomUUID()
    const sink = await open(name, { jobName: ({ data }) => ((data as { n: number }).n === 6 ? '' : 'some') })
    const events = [event(1, 'a'), event(2, 'b'), event(3, 'b'), event(4, 'a'), event(5, null)]
    const nameless = event(6, 'c')
    await client.set(`bull:${name}:${events[1]!.eventId}`, 'not a job')
    const { rejected, stopped } = await sink.publish(page([...events, nameless]), signal)
    expect(stopped).toBeUndefined()
    expect(rejected).toEqual([
      { event: nameless, reason: `jobName found no name for event ${nameless.eventId}` },
      {
        event: events[1],
        reason: expect.stringMatching(`^Redis refused the job of event ${events[1]!.eventId}: .*WRONGTYPE`),
        permanent: false,
      },
      { event: events[2], reason: waitsBehind },
    ])
    expect(await waiting(look(name))).toEqual(expect.arrayContaining([1, 4, 5]))
    await client.del(`bull:${name}:${events[1]!.eventId}`)
    expect(await sink.publish(page(events, { xid: 101n }), signal)).toEqual({ rejected: [] })
    expect((await waiting(look(name))).toSorted((a, b) => a - b)).toEqual([1, 2, 3, 4, 5])
  })

  it('rejects the event that jobName finds no name for, with the later ones of its key, and adds none of them', async () => {
    const name = randomUUID()
    const sink = await open(name, {
      jobName: ({ data }) => {
        const { n, text } = data as { n: number; text: string }
        if (n === 2) throw new Error(text)
        return n === 5 ? '' : `n${n}`
      },
    })
    const events = [
      event(1, 'a'),
      event(2, 'a'),
      event(3, 'b'),
      event(4, 'a'),
      event(5, null),
      event(6, null),
    ]
    expect(await sink.publish(page(events), signal)).toEqual({
      rejected: [
        { event: events[1], reason: `jobName found no name for event ${events[1]!.eventId}` },
        { event: events[3], reason: waitsBehind },
        { event: events[4], reason: `jobName found no name for event ${events[4]!.eventId}` },
      ],
    })
    expect(await waiting(look(name))).toEqual([1, 3, 6])
  })

  it('goes on when Redis has forgotten the scripts', async () => {
    const name = randomUUID()
    const own = (await startRedis())!
    closing.push(() => own.stop())
    const sink = await open(name, { url: own.url })
    await sink.publish(page([event(1)]), signal)
    const direct = new Redis(own.url)
    closing.push(async () => direct.disconnect())
    await direct.script('FLUSH')
    expect(await sink.publish(page([event(2), event(3)]), signal)).toEqual({ rejected: [] })
    expect(await direct.llen(`bull:${name}:wait`)).toBe(3)
  })

  it('is unavailable, and rejects nothing, while Redis is full; nobody is told the payload', async () => {
    const name = randomUUID()
    const own = (await startRedis())!
    closing.push(() => own.stop())
    const sink = await open(name, { url: own.url })
    const direct = new Redis(own.url)
    closing.push(async () => direct.disconnect())
    await direct.config('SET', 'maxmemory', '1')
    const events = [event(1), event(2, 'b')]
    const { rejected, stopped } = await sink.publish(page(events), signal)
    expect(rejected).toEqual([])
    expect(stopped?.taken).toEqual([])
    expect(stopped?.error).toBeInstanceOf(SinkUnavailableError)
    expect(String(stopped?.error)).toContain('OOM')
    expect(inspect(stopped?.error, { depth: Infinity, showHidden: true })).not.toContain('the-payload')
    await direct.config('SET', 'maxmemory', '0')
    expect(await sink.publish(page(events, { xid: 101n }), signal)).toEqual({ rejected: [] })
    expect(await direct.llen(`bull:${name}:wait`)).toBe(2)
  })

  it('is unavailable while its server is away, from the start or later, and goes on when it is back', async () => {
    const complaints = vi.spyOn(console, 'error')
    const name = randomUUID()
    const door = await Door.before(redis)
    closing.push(() => door.shut())
    await door.shut()
    const sink = await open(name, { url: door.url })
    await expect(sink.publish(page([event(1)]), signal)).rejects.toThrow(SinkUnavailableError)
    await door.open()
    const recovers = async (events: OutboxEvent[]) => {
      await expect
        .poll(() => sink.publish(page(events), signal).catch((error: unknown) => error))
        .toEqual({ rejected: [] })
    }
    await recovers([event(2)])
    await door.shut()
    await expect(sink.publish(page([event(3)]), signal)).rejects.toThrow(SinkUnavailableError)
    await door.open()
    await recovers([event(4)])
    expect(await waiting(look(name))).toEqual([2, 4])
    expect(complaints).not.toHaveBeenCalled()
    complaints.mockRestore()
  })

  it('gives up on a server that is silent, and takes a new connection', async () => {
    const name = randomUUID()
    const door = await Door.before(redis)
    closing.push(() => door.shut())
    const sink = await open(name, { url: door.url })
    await sink.publish(page([event(1)]), signal)
    door.silence()
    await expect(sink.publish(page([event(2)]), signal)).rejects.toThrow(SinkUnavailableError)
    await expect
      .poll(() => sink.publish(page([event(3)]), signal).catch((error: unknown) => error))
      .toEqual({ rejected: [] })
    expect(await waiting(look(name))).toEqual([1, 3])
  })

  it('leaves no connection open when it closes', async () => {
    const door = await Door.before(redis)
    closing.push(() => door.shut())
    const sink = await openWith(bullmq({ url: door.url, queue: randomUUID() }))
    await sink.publish(page([event(1)]), signal)
    expect(door.connections).toBe(1)
    await sink.close()
    await expect.poll(() => door.connections).toBe(0)
  })

  it('closes while its server is away', async () => {
    const complaints = vi.spyOn(console, 'error')
    const sink = await openWith(bullmq({ url: 'redis://127.0.0.1:1', queue: 'none' }))
    await expect(sink.publish(page([event(1)]), signal)).rejects.toThrow(SinkUnavailableError)
    await sink.close()
    expect(complaints).not.toHaveBeenCalled()
    complaints.mockRestore()
  })

  it('refuses to open with a window that ends before a page may come again', async () => {
    const sink = bullmq({ url: redis, queue: 'q', keepCompletedMs: 94_999, keepFailedMs: 1_000 })
    const refusal = await openWith(sink, 95_000).catch((error: unknown) => error)
    expect(refusal).toBeInstanceOf(InvalidConfigError)
    expect((refusal as InvalidConfigError).problems).toEqual([
      'bullmq: keepCompletedMs is 94999, but a page may come again after 95000 ms, and its jobs must be known then',
      'bullmq: keepFailedMs is 1000, but a page may come again after 95000 ms, and its jobs must be known then',
    ])
    const enough = bullmq({ url: redis, queue: 'q', keepCompletedMs: 95_000, keepFailedMs: 95_000 })
    await (await openWith(enough, 95_000)).close()
  })

  it('has the policy, the limit and a guarantee that names the windows', () => {
    const sink = bullmq({
      url: redis,
      queue: 'q',
      onReject: 'block',
      maxAttempts: 2,
      afterDead: 'flow',
      maxEventBytes: 1_000_000,
    })
    expect(sink.policy).toEqual({ onReject: 'block', maxAttempts: 2, afterDead: 'flow' })
    expect(sink.maxEventBytes).toBe(1_000_000)
    expect(sink.guarantee).toContain('3600000 ms after it completed or 604800000 ms after it failed')
  })

  it('names every problem of its options, and repeats no value', () => {
    let thrown: unknown
    try {
      bullmq({
        url: 'http://:pass-word@host',
        queue: 'a:b',
        prefix: '',
        jobName: 'type' as unknown as () => string,
        keepCompletedMs: 0.5,
        keepFailedMs: -1,
        maxEventBytes: 0,
        jobOptions: {
          attempts: 0,
          backoff: -1,
          priority: 2_097_152,
          delay: 5,
        } as BullmqOptions['jobOptions'] & object,
      })
    } catch (error) {
      thrown = error
    }
    expect(thrown).toBeInstanceOf(InvalidConfigError)
    expect((thrown as InvalidConfigError).problems).toEqual([
      'bullmq: url: a URL starts with redis:// or rediss://',
      'bullmq: queue is a name without a colon',
      'bullmq: prefix is a text',
      'bullmq: jobName is a function',
      'bullmq: keepCompletedMs is a whole number of milliseconds',
      'bullmq: keepFailedMs is a whole number of milliseconds',
      'bullmq: maxEventBytes is a whole number of bytes',
      'bullmq: jobOptions.attempts is a whole number',
      'bullmq: jobOptions.backoff has a delay, and a jitter up to 1',
      'bullmq: jobOptions.priority is a whole number up to 2097151',
      'bullmq: jobOptions.delay is not among attempts, backoff and priority',
    ])
    expect(inspect(thrown, { depth: Infinity })).not.toContain('pass-word')
  })
})

/** Stands before a server on a port of its own, which can be closed and opened again, or fall silent. */
class Door {
  readonly url: string
  readonly #port: number
  readonly #target: URL
  readonly #sockets = new Set<Socket>()
  #server: Server

  private constructor(server: Server, target: URL) {
    this.#server = server
    this.#target = target
    this.#port = (server.address() as { port: number }).port
    this.url = `redis://127.0.0.1:${this.#port}`
    server.on('connection', (socket) => this.#join(socket))
  }

  static async before(url: string): Promise<Door> {
    const server = createServer().listen(0, '127.0.0.1')
    await once(server, 'listening')
    return new Door(server, new URL(url))
  }

  async open(): Promise<void> {
    this.#server = createServer((socket) => this.#join(socket)).listen(this.#port, '127.0.0.1')
    await once(this.#server, 'listening')
  }

  async shut(): Promise<void> {
    if (!this.#server.listening) return
    this.#server.close()
    for (const socket of this.#sockets) socket.destroy()
    await once(this.#server, 'close')
  }

  get connections(): number {
    return this.#sockets.size / 2
  }

  /** What the connections that are open send from now on is lost; new ones are served. */
  silence(): void {
    for (const socket of this.#sockets) socket.unpipe().resume()
  }

  #join(client: Socket): void {
    const server = connect({ host: this.#target.hostname, port: Number(this.#target.port) })
    for (const [one, other] of [
      [client, server],
      [server, client],
    ] as const) {
      this.#sockets.add(one)
      one.on('error', () => undefined)
      one.on('close', () => {
        this.#sockets.delete(one)
        other.destroy()
      })
      one.pipe(other)
    }
  }
}
