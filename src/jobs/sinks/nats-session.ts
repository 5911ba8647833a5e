import type { JetStreamClient } from '@nats-io/jetstream'
import type { NatsConnection } from '@nats-io/transport-node'
import { SinkUnavailableError } from '../../db/errors.ts'
import { messageOf } from '../../db/message-of.ts'
import type { NatsOptions } from './nats-options.ts'
import { type NatsStream, readStream, requireUsable } from './nats-stream.ts'
import { optionalPeer } from './optional-peer.ts'
import type { SinkContext } from './sink.ts'

export type Client = Awaited<ReturnType<typeof loadClient>>

const packages = ['@nats-io/jetstream', '@nats-io/transport-node'] as const

export function loadClient() {
  return optionalPeer('nats', packages, async () => {
    const [jetstream, transport] = await Promise.all([
      import('@nats-io/jetstream'),
      import('@nats-io/transport-node'),
    ])
    return { ...jetstream, connect: transport.connect, headers: transport.headers }
  })
}

export type Session = {
  connection: NatsConnection
  jetstream: JetStreamClient
  /** as it was when last looked at */
  stream: NatsStream
  /** looks at the stream; throws SinkUnavailableError while it is of no use */
  look(): Promise<NatsStream>
  /** ends a connection that cannot be trusted any more; the next page makes another */
  drop(): Promise<void>
}

const answerMs = 5_000

/** Connects, once and fast, and reads what the stream allows. */
export async function connect(
  options: NatsOptions,
  { worstRetryMs }: SinkContext,
  client: Client,
  lost: () => void,
): Promise<Session> {
  const { servers, subject, stream, connection: settings } = options
  let connection: NatsConnection | undefined
  try {
    const defaults = { name: 'holdfast', timeout: answerMs }
    connection = await client.connect({
      ...defaults,
      ...settings,
      servers,
      reconnect: false,
      noAsyncTraces: true,
    })
    const manager = await client.jetstreamManager(connection, { checkAPI: false, timeout: answerMs })
    const look = async () => {
      const found = await readStream(manager, stream)
      requireUsable(found, worstRetryMs, typeof subject === 'string' ? subject : undefined)
      return found
    }
    const found = await look()
    const ended = connection
    void ended.closed().then(lost)
    const drop = async () => {
      lost()
      await ended.close()
    }
    const jetstream = client.jetstream(connection, { timeout: answerMs })
    return { connection, jetstream, stream: found, look, drop }
  } catch (error) {
    await connection?.close()
    throw unavailable(`cannot publish to stream ${stream}`, error)
  }
}

export function unavailable(what: string, error: unknown): SinkUnavailableError {
  if (error instanceof SinkUnavailableError) return error
  // Its own text blames the server's settings, but nobody answers either while the stream is gone or has no leader.
  const silent = error instanceof Error && error.name === 'JetStreamNotEnabled'
  const reason = silent
    ? 'nobody answers; is JetStream enabled, is the stream there, has it a leader?'
    : messageOf(error)
  return new SinkUnavailableError(`NATS: ${what}: ${reason}`, { cause: error })
}
