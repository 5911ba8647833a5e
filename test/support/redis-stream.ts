import type { Cluster, Redis } from 'ioredis'
import { pino } from 'pino'
import { Databases } from '../../src/db/databases.ts'
import type { OutboxEvent } from '../../src/db/outbox-event.ts'
import { systemClock } from '../../src/jobs/clock.ts'
import { type RedisStreamOptions, redisStream } from '../../src/jobs/sinks/redis-stream.ts'
import type { OpenSink, Page } from '../../src/jobs/sinks/sink.ts'
import { pageOf as anyPageOf, type Fields, numbered } from './outbox-page.ts'

/** What the tests of the sink redisStream have in common: sinks to open and pages to publish without a database. */
export class StreamSinks {
  readonly #databases = new Databases({ primary: 'postgres://127.0.0.1:1/none' })
  readonly #opened: OpenSink[] = []

  async open(options: RedisStreamOptions): Promise<OpenSink> {
    const sink = await redisStream(options).open({
      databases: this.#databases,
      installation: '0123456789abcdef',
      name: 'stream',
      log: pino({ level: 'silent' }),
      clock: systemClock,
      worstRetryMs: 1_000,
    })
    this.#opened.push(sink)
    return sink
  }

  async close(): Promise<void> {
    for (const sink of this.#opened) await sink.close()
    await this.#databases.end()
  }
}

export const signal = new AbortController().signal

/** Event number `n`, by which it is known again in the stream; its place in the outbox is `id`. */
export function eventOf(n: number, key: string | null = 'k', id = n, fields: Fields = {}): OutboxEvent {
  return numbered(id, {
    partitionkey: key,
    data: { n },
    ...(key === null ? {} : { subject: key }),
    ...fields,
  })
}

export function pageOf({ events, ...fields }: Partial<Page> & { events: readonly OutboxEvent[] }): Page {
  return anyPageOf(events, { sink: 'stream', ...fields })
}

/** The numbers of the events in a stream. */
export async function numbersIn(client: Redis | Cluster, stream: string): Promise<number[]> {
  const entries = await client.xrange(stream, '-', '+')
  return entries.map(([, [, json]]) => (JSON.parse(json ?? '') as { data: { n: number } }).data.n)
}
