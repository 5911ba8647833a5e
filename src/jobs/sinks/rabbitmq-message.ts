import { extensionsOf } from '../../db/cloud-event.ts'
import { RejectedEventError } from '../../db/errors.ts'
import { messageOf } from '../../db/message-of.ts'
import type { OutboxEvent } from '../../db/outbox-event.ts'
import type { Message } from './rabbitmq-channel.ts'
import type { RabbitmqOptions } from './rabbitmq-options.ts'

/** Throws RejectedEventError for an event that has no routing key. */
export function toMessage(
  { routingKey, persistent = true }: RabbitmqOptions,
  messageId: string,
  event: OutboxEvent,
): Message {
  const key = typeof routingKey === 'function' ? called(routingKey, event) : (routingKey ?? event.type)
  // Anything that is missing would go out as the empty key. What is too long is refused by the encoder.
  if (typeof key !== 'string') throw new RejectedEventError('routingKey() gave no text', { permanent: true })
  const seconds = Math.floor(Date.parse(event.attributes.time) / 1000)
  return {
    routingKey: key,
    content: Buffer.from(event.json),
    properties: {
      messageId,
      persistent,
      contentType: 'application/cloudevents+json',
      type: event.type,
      // unsigned in AMQP
      ...(seconds >= 0 ? { timestamp: seconds } : {}),
      headers: extensionsOf(event.attributes),
    },
  }
}

function called(routingKey: (event: OutboxEvent) => string, event: OutboxEvent): string {
  try {
    return routingKey(event)
  } catch (error) {
    throw new RejectedEventError(`routingKey() failed on it: ${messageOf(error)}`, { cause: error })
  }
}
