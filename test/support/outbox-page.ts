import { randomUUID } from 'node:crypto'
import { pino } from 'pino'
import type { CloudEvent } from '../../src/db/cloud-event.ts'
import { Databases } from '../../src/db/databases.ts'
import { OutboxEvent } from '../../src/db/outbox-event.ts'
import { systemClock } from '../../src/jobs/clock.ts'
import type { Page, Published, SinkContext } from '../../src/jobs/sinks/sink.ts'

/** Attributes of an event, headers among them; `attempts` as of one that was parked. */
export type Fields = Partial<Omit<CloudEvent, 'partitionkey'>> & {
  partitionkey?: string | null
  attempts?: number
}

/** An event whose data is its number, so that a test reads from the data what arrived. */
export function numbered(id: number, fields: Fields = {}): OutboxEvent {
  const { partitionkey = 'k', attempts, ...attributes } = fields
  const event = {
    specversion: '1.0',
    id: randomUUID(),
    source: '/test',
    type: 'test.counted',
    time: '2026-01-01T00:00:00Z',
    ...(partitionkey === null ? {} : { partitionkey }),
    traceparent: '00-1-2-3',
    datacontenttype: 'application/json',
    data: { n: id },
    ...attributes,
  }
  return new OutboxEvent(String(id), partitionkey, JSON.stringify(event), attempts)
}

/** Events whose keys take turns. */
export function numberedOfKeys(count: number, keys: number): OutboxEvent[] {
  return Array.from({ length: count }, (_, i) => numbered(i + 1, { partitionkey: `k${i % keys}` }))
}

export function pageOf(events: readonly OutboxEvent[], fields: Partial<Page> = {}): Page {
  return {
    sink: 'tested',
    shard: 0,
    generation: 1,
    replay: false,
    epoch: 1n,
    position: 0n,
    xid: 100n,
    attempt: 'a',
    events,
    ...fields,
  }
}

/** What a sink is opened with that uses no database. */
export function sinkContextOf(fields: Partial<SinkContext> = {}): SinkContext {
  return {
    databases: new Databases({ primary: 'postgres://127.0.0.1:1/none' }),
    installation: '0123456789abcdef',
    name: 'tested',
    log: pino({ level: 'silent' }),
    clock: systemClock,
    worstRetryMs: 95_000,
    ...fields,
  }
}

/** The numbers of each key, in the order in which they stand. */
export function orderOfKeys(messages: readonly { n: number; key: string }[]): Record<string, number[]> {
  const order: Record<string, number[]> = {}
  for (const { n, key } of messages) (order[key] ??= []).push(n)
  return order
}

/** What `orderOfKeys` gives when all of `numberedOfKeys` arrived in order. */
export function expectedOrder(count: number, keys: number): Record<string, number[]> {
  const events = numberedOfKeys(count, keys)
  return orderOfKeys(events.map(({ id, partitionkey }) => ({ n: Number(id), key: String(partitionkey) })))
}

/**
 * With what a sink says that it is unavailable. It throws when it knows before it sends anything, and says that it stopped
 * when it learns it on the way; which of the two depends on what is noticed first.
 */
export async function stopOf(publishing: Promise<Published>): Promise<unknown> {
  return publishing.then(
    ({ stopped }) => stopped?.error,
    (error: unknown) => error,
  )
}
