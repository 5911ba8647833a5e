import type { NodeConnectionOptions } from '@nats-io/transport-node'
import { InvalidConfigError } from '../../db/errors.ts'
import type { OutboxEvent } from '../../db/outbox-event.ts'
import { isPublishable } from './nats-stream.ts'
import type { SinkPolicy } from './sink.ts'

export type NatsOptions = SinkPolicy & {
  /** host:port, one or several of the same cluster */
  servers: string | string[]
  /** the JetStream stream that must take the events; it is not created here */
  stream: string
  /** default `events.<type>` */
  subject?: string | ((event: OutboxEvent) => string)
  /** how many events may be unacknowledged at once; those of one key go one after the other. Default 256 */
  maxPending?: number
  /** user, pass, token, tls, … as @nats-io/transport-node has them */
  connection?: Omit<NodeConnectionOptions, 'servers' | 'reconnect' | 'waitOnFirstConnect'>
}

export type NatsSettings = NatsOptions & { readonly maxPending: number }

/** Throws InvalidConfigError with every problem. */
export function natsSettings(options: NatsOptions): NatsSettings {
  const { servers, stream, subject, maxPending = 256 } = options
  const problems = [
    ...(servers === undefined || servers.length === 0
      ? ['nats: servers is host:port or a list of them']
      : []),
    ...(typeof stream === 'string' && /^[^\s.*>/\\]+$/.test(stream)
      ? []
      : ['nats: stream is the name of a stream']),
    ...(typeof subject === 'string' && !isPublishable(subject)
      ? ['nats: subject is one that can be published to, without wildcards, or a function']
      : []),
    ...(Number.isSafeInteger(maxPending) && maxPending > 0
      ? []
      : ['nats: maxPending is a whole number of events']),
  ]
  if (problems.length > 0) throw new InvalidConfigError(problems)
  return { ...options, maxPending }
}
