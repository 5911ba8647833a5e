import type { JetStreamApiError } from '@nats-io/jetstream'
import { RejectedEventError } from '../../db/errors.ts'
import { messageOf } from '../../db/message-of.ts'
import type { OutboxEvent } from '../../db/outbox-event.ts'
import type { NatsOptions } from './nats-options.ts'
import { type Client, type Session, unavailable } from './nats-session.ts'
import { captures, isPublishable } from './nats-stream.ts'
import { messageIdOf, type Page } from './sink.ts'

/** Publishes one event and waits for the acknowledgement; with the rejection when this event is the trouble. */
export async function publishToStream(
  session: Session,
  client: Client,
  options: NatsOptions,
  page: Page,
  event: OutboxEvent,
  aborted: Promise<never>,
): Promise<RejectedEventError | undefined> {
  const messageId = messageIdOf(page, event)
  const payload = Buffer.from(event.json)
  try {
    const subject = subjectOf(options, event)
    await Promise.race([requireCaptured(session, subject), aborted])
    requireSmall(session, messageId, payload)
    const headers = client.headers()
    headers.set(contentType.name, contentType.value)
    await Promise.race([
      // The stream is named so that no other one can take the event, whose window nobody looked at.
      session.jetstream.publish(subject, payload, {
        msgID: messageId,
        headers,
        expect: { streamName: session.stream.name },
      }),
      aborted,
    ])
    return undefined
  } catch (error) {
    if (error instanceof RejectedEventError) return error
    const rejection = error instanceof client.JetStreamApiError ? rejectionOf(error) : undefined
    if (rejection) return rejection
    throw unavailable(`stream ${session.stream.name} did not take an event`, error)
  }
}

const contentType = { name: 'content-type', value: 'application/cloudevents+json' }

function subjectOf({ subject }: NatsOptions, event: OutboxEvent): string {
  if (typeof subject === 'string') return subject
  let own: unknown
  try {
    own = subject ? subject(event) : `events.${event.type}`
  } catch (error) {
    throw new RejectedEventError(`subject() failed on it: ${messageOf(error)}`, { cause: error })
  }
  if (typeof own === 'string' && isPublishable(own)) return own
  throw new RejectedEventError(
    'its subject cannot be published to: tokens between dots, without white space, * or >',
    { permanent: true },
  )
}

/**
 * A subject outside the stream is the event's own trouble. Looked up first: something else may answer there, such as the
 * JetStream API itself. The stream may have been given the subject since it was last looked at.
 */
async function requireCaptured(session: Session, subject: string): Promise<void> {
  if (captures(session.stream, subject)) return
  session.stream = await session.look()
  if (captures(session.stream, subject)) return
  throw new RejectedEventError(
    `stream ${session.stream.name} does not capture subject ${subject}; add it to the stream's subjects`,
  )
}

/** Server and stream count headers and payload together. */
function requireSmall({ connection, stream }: Session, messageId: string, payload: Uint8Array): void {
  const limits = [connection.info?.max_payload, stream.maxMessageBytes].filter((limit) => limit !== undefined)
  const limit = Math.min(...limits)
  const head = [
    'NATS/1.0',
    `${contentType.name}: ${contentType.value}`,
    `Nats-Msg-Id: ${messageId}`,
    `Nats-Expected-Stream: ${stream.name}`,
    '\r\n',
  ]
  const bytes = payload.length + Buffer.byteLength(head.join('\r\n'))
  if (bytes <= limit) return
  throw new RejectedEventError(
    `it has ${bytes} bytes with its headers, and stream ${stream.name} takes ${limit} (max_payload of the server, max_msg_size of the stream)`,
    { permanent: true },
  )
}

/** The answers of JetStream (err_code) that concern one message and not the stream. */
function rejectionOf(error: JetStreamApiError): RejectedEventError | undefined {
  const { code, message: reason } = error
  const tooLarge = 10054
  const otherStream = 10060
  const full = 10077
  if (code === tooLarge) return new RejectedEventError(reason, { permanent: true, cause: error })
  if (code === otherStream || (code === full && reason.includes('per subject'))) {
    return new RejectedEventError(reason, { cause: error })
  }
  return undefined
}
