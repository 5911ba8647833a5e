import { RejectedEventError, SinkUnavailableError } from '../../db/errors.ts'
import { messageOf } from '../../db/message-of.ts'
import type { OutboxEvent } from '../../db/outbox-event.ts'
import { within } from '../../db/within.ts'
import { policyOf } from './define-sink.ts'
import { LazyConnection } from './lazy-connection.ts'
import { optionalPeer } from './optional-peer.ts'
import { publishByKey } from './publish-by-key.ts'
import type { RabbitChannel } from './rabbitmq-channel.ts'
import { RabbitLink } from './rabbitmq-link.ts'
import { toMessage } from './rabbitmq-message.ts'
import { type RabbitmqOptions, type RabbitmqSettings, rabbitmqSettings } from './rabbitmq-options.ts'
import { messageIdOf, type OpenSink, type Page, type Sink } from './sink.ts'
import { withAbort } from './with-abort.ts'

export type { RabbitmqOptions } from './rabbitmq-options.ts'

/**
 * Delivers to a RabbitMQ exchange as CloudEvents in JSON, with publisher confirms, each with its id as message_id.
 * RabbitMQ recognises no repeats: whoever consumes does, by that id.
 *
 * `mandatory` is set, since a confirm alone does not prove that a queue took the message. Of one key only one message is
 * unconfirmed at a time, so that a repeat never comes between an event and the one before it.
 */
export function rabbitmq(options: RabbitmqOptions): Sink {
  const settings = rabbitmqSettings(options)
  return {
    guarantee:
      'at least once, with the same message_id each time (RabbitMQ itself recognises no repeat); order per key',
    maxEventBytes: settings.maxEventBytes,
    policy: policyOf(options),
    open: async () => openRabbitmq(settings, await loadClient()),
  }
}

type Client = Awaited<ReturnType<typeof loadClient>>

function loadClient() {
  return optionalPeer('rabbitmq', ['amqplib'], () => import('amqplib'))
}

function openRabbitmq(settings: RabbitmqSettings, client: Client): OpenSink {
  const connection = new LazyConnection<RabbitLink>(
    (lost) => connect(settings, client, lost),
    (link) => link.drop(),
  )
  return {
    publish: (page, signal) =>
      withAbort(signal, async (aborted) => {
        const link = await Promise.race([connection.get(), aborted])
        const channel = await open(link, settings, aborted)
        const published = await publishByKey(page.events, settings.maxPending, (event) =>
          publishOne(link, channel, settings, page, event, aborted),
        )
        link.give(channel, published.stopped === undefined)
        // A broker that is silent though it does not say that it is blocked may be gone.
        if (isSilence(published.stopped?.error) && !link.blocked) await link.drop()
        return published
      }),
    close: () => connection.close(),
  }
}

const connectMs = 5_000

async function connect(
  { url, exchange }: RabbitmqSettings,
  client: Client,
  lost: () => void,
): Promise<RabbitLink> {
  try {
    const connecting = client.connect(url, {
      timeout: connectMs,
      noDelay: true,
      clientProperties: { connection_name: 'holdfast' },
    })
    return new RabbitLink(await connecting, exchange, lost)
  } catch (error) {
    throw new SinkUnavailableError(`RabbitMQ cannot be reached: ${messageOf(error)}`, { cause: error })
  }
}

async function open(
  link: RabbitLink,
  { confirmMs }: RabbitmqSettings,
  aborted: Promise<never>,
): Promise<RabbitChannel> {
  const opening = link.take()
  try {
    return await Promise.race([within(confirmMs, 'opening a channel', opening), aborted])
  } catch (error) {
    opening.then((channel) => link.give(channel, true)).catch(() => undefined)
    if (error instanceof SinkUnavailableError) throw error
    await link.drop()
    throw new SinkUnavailableError(`RabbitMQ opens no channel: ${messageOf(error)}`, { cause: error })
  }
}

async function publishOne(
  link: RabbitLink,
  channel: RabbitChannel,
  settings: RabbitmqSettings,
  page: Page,
  event: OutboxEvent,
  aborted: Promise<never>,
): Promise<RejectedEventError | undefined> {
  try {
    link.requireUnblocked()
    const message = toMessage(settings, messageIdOf(page, event), event)
    const limit = Math.min(settings.maxEventBytes, link.largestBytes)
    if (message.content.length > limit) {
      const reason = `it has ${message.content.length} bytes, and ${limit} are the limit (max_message_size of the broker, option maxEventBytes)`
      return new RejectedEventError(reason, { permanent: true })
    }
    return await Promise.race([within(settings.confirmMs, 'the confirm', channel.send(message)), aborted])
  } catch (error) {
    if (error instanceof RejectedEventError) return error
    if (error instanceof SinkUnavailableError) throw error
    const why = link.blocked ? 'it is blocked; free memory or disk space of the broker' : messageOf(error)
    throw new SinkUnavailableError(`RabbitMQ did not confirm an event: ${why}`, { cause: error })
  }
}

function isSilence(error: unknown): boolean {
  const cause = error instanceof SinkUnavailableError ? error.cause : undefined
  return cause instanceof Error && 'code' in cause && cause.code === 'ETIMEDOUT'
}
