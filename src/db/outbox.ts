import { toExtensions } from './cloud-event.ts'
import { InvalidPayloadError } from './errors.ts'
import { isEventId, newEventId } from './event-ids.ts'
import { type EventRunner, isSqlTag } from './event-runner.ts'
import { bytesOver } from './event-size.ts'
import { encodeJson, type Json } from './json.ts'

export type { EventRunner }

/**
 * Table outbox: CloudEvents 1.0 as the text that sinks send, appended in the caller's transaction and read by snapshot
 * difference. Rows are never updated.
 */
export type NewEvent = {
  /** what happened, for example `order.placed` */
  type: string
  /** what it happened to; events of one subject keep their order */
  subject?: string
  data?: Json | object
  /** UUID; default a new UUIDv7 */
  id?: string
  /** URI reference of the producer; default `/holdfast` */
  source?: string
  /** ordering key where it is not the subject */
  partitionkey?: string
  /** default now */
  time?: Date
  /** W3C trace context, carried as the CloudEvents extension of that name */
  traceparent?: string
  /** extension attributes: names of lower-case letters and digits */
  headers?: Readonly<Record<string, string>>
}

/**
 * Appends events in the caller's transaction: they exist exactly if it commits. Returns their ids, in order. Throws
 * InvalidPayloadError for what is not an event, not JSON, or larger than `limitOf` its type.
 */
export async function appendEvents(
  runner: EventRunner,
  events: NewEvent | readonly NewEvent[],
  limitOf?: (type: string) => EventLimit | undefined,
): Promise<string[]> {
  const list = Array.isArray(events) ? (events as readonly NewEvent[]) : [events as NewEvent]
  if (list.length === 0) return []
  const composed = list.map((event, i) => compose(event, list.length === 1 ? 'event' : `events[${i}]`))
  if (limitOf)
    for (const [i, event] of list.entries()) checkSize(event.type, composed[i]?.json ?? '', limitOf)
  const json = `[${composed.map((event) => event.json).join(',')}]`
  if (isSqlTag(runner, 'publish')) await runner`select holdfast.append_events(${json}::text::json)`
  else await runner.query('select holdfast.append_events($1::text::json)', [json])
  return composed.map(({ id }) => id)
}

/** The largest event that a sink takes; bytes of UTF-8, as CloudEvent. */
export type EventLimit = { sink: string; bytes: number }

function checkSize(type: string, json: string, limitOf: (type: string) => EventLimit | undefined): void {
  const limit = limitOf(type)
  if (limit === undefined) return
  const bytes = bytesOver(json, limit.bytes)
  if (bytes === undefined) return
  throw new InvalidPayloadError(
    `an event of type ${type} takes ${bytes} bytes, and the sink ${limit.sink} that it is routed to takes ${limit.bytes}; store the data elsewhere and publish a reference to it`,
  )
}

/** The event as it is stored and sent. */
function compose(event: NewEvent, path: string): { id: string; json: string } {
  if (typeof event !== 'object' || event === null)
    throw new InvalidPayloadError(`${path} is not an event object`)
  if (typeof event.type !== 'string' || event.type === '') {
    throw new InvalidPayloadError(`${path}.type is missing; name what happened, for example order.placed`)
  }
  if (event.id !== undefined && !isEventId(event.id)) {
    throw new InvalidPayloadError(
      `${path}.id is not a UUID: ${JSON.stringify(event.id)}; leave it out to get one`,
    )
  }
  const id = event.id ?? newEventId()
  const subject = textOf(event, 'subject', path)
  const json = encodeJson(
    {
      specversion: '1.0',
      id,
      source: textOf(event, 'source', path) ?? '/holdfast',
      type: event.type,
      time: timeOf(event, path),
      subject,
      partitionkey: textOf(event, 'partitionkey', path) ?? subject,
      ...extensionsOf(event, path),
      datacontenttype: 'application/json',
      data: event.data ?? null,
    },
    path,
  )
  return { id, json }
}

function extensionsOf({ headers, traceparent }: NewEvent, path: string): Record<string, unknown> | undefined {
  if (headers === undefined && traceparent === undefined) return undefined
  const all = traceparent === undefined ? headers : { ...headers, traceparent }
  return toExtensions(all ?? {}, `${path}.headers`)
}

function textOf(
  event: NewEvent,
  name: 'source' | 'subject' | 'partitionkey',
  path: string,
): string | undefined {
  const text: unknown = event[name] ?? undefined
  if (text === undefined || typeof text === 'string') return text
  throw new InvalidPayloadError(`${path}.${name} is not a string`)
}

/** RFC 3339, whose years have four digits. */
function timeOf({ time = new Date() }: NewEvent, path: string): string {
  const text = time instanceof Date && !Number.isNaN(time.getTime()) ? time.toISOString() : ''
  if (/^(?!0000)\d{4}-/.test(text)) return text
  throw new InvalidPayloadError(`${path}.time is not a Date between the years 1 and 9999`)
}
