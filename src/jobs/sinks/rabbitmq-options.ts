import { InvalidConfigError } from '../../db/errors.ts'
import type { OutboxEvent } from '../../db/outbox-event.ts'
import type { SinkPolicy } from './sink.ts'

export type RabbitmqOptions = SinkPolicy & {
  /** amqp://… or amqps://… */
  url: string
  /** the exchange, which is not declared here; '' is the default exchange, whose routing keys are names of queues */
  exchange: string
  /** default the event's type */
  routingKey?: string | ((event: OutboxEvent) => string)
  /** whether messages survive a restart of the broker in durable queues; default true */
  persistent?: boolean
  /** how many messages may be unconfirmed at once; those of one key go one after the other. Default 256 */
  maxPending?: number
  /** bytes of an event as CloudEvent in JSON; default 16 MiB, the max_message_size of RabbitMQ 4 (128 MiB before) */
  maxEventBytes?: number
  /** how long a confirm may take; default 10,000 */
  confirmMs?: number
}

export type RabbitmqSettings = RabbitmqOptions &
  Required<Pick<RabbitmqOptions, 'maxPending' | 'maxEventBytes' | 'confirmMs'>>

/** Throws InvalidConfigError with every problem; none of them repeats the URL, which may hold a password. */
export function rabbitmqSettings(options: RabbitmqOptions): RabbitmqSettings {
  const { url, exchange, maxPending = 256, maxEventBytes = 16 * 1024 * 1024, confirmMs = 10_000 } = options
  const problems = [
    ...(URL.canParse(url) && /^amqps?:$/.test(new URL(url).protocol)
      ? []
      : ['rabbitmq: url is amqp://… or amqps://…']),
    ...(typeof exchange === 'string' && Buffer.byteLength(exchange) <= 255
      ? []
      : ["rabbitmq: exchange is the name of an exchange, '' for the default one"]),
    ...Object.entries({ maxPending, maxEventBytes, confirmMs })
      .filter(([, value]) => !Number.isSafeInteger(value) || value < 1)
      .map(([name]) => `rabbitmq: ${name} is a whole number above 0`),
  ]
  if (problems.length > 0) throw new InvalidConfigError(problems)
  return { ...options, maxPending, maxEventBytes, confirmMs }
}
