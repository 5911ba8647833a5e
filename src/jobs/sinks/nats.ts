import { policyOf } from './define-sink.ts'
import { LazyConnection } from './lazy-connection.ts'
import { publishToStream } from './nats-message.ts'
import { type NatsOptions, type NatsSettings, natsSettings } from './nats-options.ts'
import { type Client, connect, loadClient, type Session } from './nats-session.ts'
import { publishByKey } from './publish-by-key.ts'
import type { OpenSink, Sink, SinkContext } from './sink.ts'
import { withAbort } from './with-abort.ts'

export type { NatsOptions } from './nats-options.ts'

/**
 * Delivers into a NATS JetStream stream as CloudEvents in JSON, each with its id as Nats-Msg-Id, by which the stream
 * recognises what comes again within its `duplicate_window`. That window is read on connecting and must cover the
 * longest time after which a page may come again.
 *
 * Of one key only one event is unacknowledged at a time, so each is sent after the one before it is stored; a copy that
 * comes late, also from a relay that lost its lease, is a repeat within the window.
 */
export function nats(options: NatsOptions): Sink {
  const settings = natsSettings(options)
  return {
    guarantee:
      'each event is stored once, as long as what comes again does so within the duplicate_window of the stream; order per key',
    policy: policyOf(options),
    open: async (context) => openNats(settings, context, await loadClient()),
  }
}

function openNats(settings: NatsSettings, context: SinkContext, client: Client): OpenSink {
  const link = new LazyConnection<Session>(
    (lost) => connect(settings, context, client, lost),
    (session) => session.drop(),
  )
  return {
    publish: (page, signal) =>
      withAbort(signal, async (aborted) => {
        const session = await Promise.race([link.get(), aborted])
        const published = await publishByKey(page.events, settings.maxPending, (event) =>
          publishToStream(session, client, settings, page, event, aborted),
        )
        // A refusal or a stop says nothing against the connection; anything else may mean that it is dead.
        const error = published.stopped?.error
        const refused = error instanceof Error && error.cause instanceof client.JetStreamApiError
        if (published.stopped && !refused && !signal.aborted) await session.drop()
        return published
      }),
    close: () => link.close(),
  }
}
