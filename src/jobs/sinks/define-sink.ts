import type { CloudEvent } from '../../db/cloud-event.ts'
import { InvalidConfigError, RejectedEventError, SinkUnavailableError } from '../../db/errors.ts'
import { messageOf } from '../../db/message-of.ts'
import type { OutboxEvent } from '../../db/outbox-event.ts'
import { publishByKey } from './publish-by-key.ts'
import { messageIdOf, type Sink, type SinkPolicy } from './sink.ts'

export type Delivery = {
  /** by which the receiver can recognise what comes again */
  messageId: string
  /** the event as JSON text */
  json: string
  signal: AbortSignal
}

export type SinkSpec = SinkPolicy & {
  /** what it promises; default at least once */
  readonly guarantee?: string
  readonly maxEventBytes?: number
  /** how many events may be on their way at once; those of one key go one after the other. Default 16 */
  readonly concurrency?: number
  /**
   * Delivers one event. RejectedEventError says that this event is the trouble; any other error that the receiver takes
   * nothing now, and the relay tries again later.
   */
  deliver(this: void, event: CloudEvent, delivery: Delivery): Promise<void>
  close?(this: void): Promise<void>
}

/** Makes a sink of one's own, from a function that delivers one event or from a whole Sink. */
export function defineSink(spec: SinkSpec | Sink): Sink {
  if ('open' in spec) return spec
  const { guarantee = 'at least once; order per key', concurrency = 16, deliver, close } = spec
  if (typeof deliver !== 'function') throw new InvalidConfigError(['defineSink: deliver is a function'])
  return {
    guarantee,
    ...(spec.maxEventBytes === undefined ? {} : { maxEventBytes: spec.maxEventBytes }),
    policy: policyOf(spec),
    open: async () => ({
      publish: async (page, signal) => {
        const deliverOne = async (event: OutboxEvent) => {
          const { json } = event
          try {
            await deliver(JSON.parse(json) as CloudEvent, {
              messageId: messageIdOf(page, event),
              json,
              signal,
            })
            return undefined
          } catch (error) {
            if (error instanceof RejectedEventError) return error
            throw new SinkUnavailableError(
              `the sink ${page.sink} did not take an event: ${messageOf(error)}`,
              {
                cause: error,
              },
            )
          }
        }
        return publishByKey(page.events, concurrency, deliverOne, signal)
      },
      close: async () => close?.(),
    }),
  }
}

/** The policy among a sink's options. */
export function policyOf({ onReject, maxAttempts, afterDead }: SinkPolicy): SinkPolicy {
  return {
    ...(onReject === undefined ? {} : { onReject }),
    ...(maxAttempts === undefined ? {} : { maxAttempts }),
    ...(afterDead === undefined ? {} : { afterDead }),
  }
}
