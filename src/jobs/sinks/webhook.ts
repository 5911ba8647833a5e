import type { Webhook } from 'standardwebhooks'
import { InvalidConfigError, RejectedEventError, SinkUnavailableError } from '../../db/errors.ts'
import type { OutboxEvent } from '../../db/outbox-event.ts'
import type { Clock } from '../clock.ts'
import { type Deadline, Deadlines } from './deadlines.ts'
import { policyOf } from './define-sink.ts'
import { publishByKey } from './publish-by-key.ts'
import { retryAfterMs } from './retry-after.ts'
import { messageIdOf, type OpenSink, type Page, type Sink } from './sink.ts'
import { type Endpoint, endpointOf, type WebhookOptions } from './webhook-options.ts'

export type { WebhookOptions } from './webhook-options.ts'

/**
 * Posts each event to a URL, signed as Standard Webhooks 1.0 has it (https://www.standardwebhooks.com). The body is the
 * CloudEvent, `webhook-id` the same on each try. Needs the package `standardwebhooks`.
 *
 * An answer is about the event or about the receiver. About the event: the other 4xx, which park it with its key. About
 * the receiver: no answer, 3xx, 5xx, and the 4xx of a wrong address, wrong credentials or haste; nothing is charged then,
 * and the events wait. What went wrong is told by its status or error code alone: a receiver's text may repeat the
 * payload, and the URL may hold credentials.
 */
export function webhook(options: WebhookOptions): Sink {
  const endpoint = endpointOf(options)
  return {
    guarantee:
      'at least once, with the same webhook-id on each try, by which the receiver knows what it has; order per key',
    ...(options.maxEventBytes === undefined ? {} : { maxEventBytes: options.maxEventBytes }),
    policy: policyOf(options),
    open: async ({ clock }) => openWebhook(endpoint, await signersOf(endpoint.secrets), clock),
  }
}

/**
 * Below what the relay waits for a page (publishMs): past that it no longer hears what was taken, and a receiver too slow
 * for a whole page would get its beginning again and again. What is told to have been taken is not sent again.
 */
export const longestPageMs = 18_000

function openWebhook(endpoint: Endpoint, signers: readonly Webhook[], clock: Clock): OpenSink {
  return {
    publish: async (page, signal) => {
      const deadlines = new Deadlines(endpoint.timeoutMs, signal, longestPageMs)
      try {
        return await publishByKey(page.events, endpoint.concurrency, async (event) =>
          judge(await post(endpoint, signers, clock, page, event, deadlines.start()), page.sink, event),
        )
      } finally {
        deadlines.close()
      }
    },
    close: async () => undefined,
  }
}

async function signersOf(secrets: readonly string[]): Promise<Webhook[]> {
  const { Webhook } = await import('standardwebhooks').catch((cause: unknown) => {
    if ((cause as { code?: unknown } | null)?.code !== 'ERR_MODULE_NOT_FOUND') throw cause
    throw new InvalidConfigError(
      ['webhook: the package that signs is missing; run `npm install standardwebhooks`'],
      { cause },
    )
  })
  return secrets.map((secret) => new Webhook(secret))
}

type Answer = { status: number; retryAfterMs: number | undefined }

async function post(
  endpoint: Endpoint,
  signers: readonly Webhook[],
  clock: Clock,
  page: Page,
  event: OutboxEvent,
  deadline: Deadline,
): Promise<Answer> {
  const { url, headers, timeoutMs } = endpoint
  const id = messageIdOf(page, event)
  const time = new Date(clock.now())
  const body = event.json
  try {
    const response = await fetch(url, {
      method: 'POST',
      redirect: 'manual',
      headers: {
        ...headers,
        'content-type': 'application/cloudevents+json',
        'webhook-id': id,
        'webhook-timestamp': String(Math.floor(time.getTime() / 1000)),
        'webhook-signature': signers.map((signer) => signer.sign(id, time, body)).join(' '),
      },
      body,
      signal: deadline.signal,
    })
    await discard(response)
    const { status } = response
    return { status, retryAfterMs: retryAfterMs(response.headers.get('retry-after'), clock.now()) }
  } catch (error) {
    throw new SinkUnavailableError(`the webhook of ${page.sink} ${reasonOf(error, deadline, timeoutMs)}`, {
      cause: error,
    })
  } finally {
    deadline.clear()
  }
}

/** An answer up to this size is read to its end, so that its connection serves the next event; a longer one is cut off. */
const mostAnswerBytes = 64 * 1024

/** The status is all that counts. What comes after it, or fails to come, changes nothing about it. */
async function discard(response: Response): Promise<void> {
  const reader = response.body?.getReader()
  if (!reader) return
  try {
    for (let bytes = 0; bytes < mostAnswerBytes; ) {
      const { done, value } = await reader.read()
      if (done) return
      bytes += value.byteLength
    }
    await reader.cancel()
  } catch {
    // The connection is gone, by the receiver or by the deadline.
  }
}

function reasonOf(error: unknown, deadline: Deadline, timeoutMs: number): string {
  if (deadline.passed()) return `did not answer within ${timeoutMs} ms`
  if (deadline.signal.aborted) return 'was not waited for: the worker stops, or the page took too long'
  const { code } = ((error as Error).cause ?? error) as { code?: unknown }
  return `did not answer: ${typeof code === 'string' ? code : 'the request failed'}`
}

/** About the receiver, not about the event. */
const unavailable = new Set([401, 403, 404, 408, 425, 429])

/** The event is too large, or the receiver wants no more events at all. */
const permanent = new Set([410, 413])

function judge(answer: Answer, sink: string, event: OutboxEvent): RejectedEventError | undefined {
  const { status } = answer
  if (status >= 200 && status < 300) return undefined
  if (status >= 400 && status < 500 && !unavailable.has(status)) {
    return new RejectedEventError(`the webhook answered event ${event.eventId} with ${status}`, {
      permanent: permanent.has(status),
    })
  }
  const hint = status < 400 ? '; redirects are not followed, so give the sink the new URL' : ''
  throw new SinkUnavailableError(`the webhook of ${sink} answered with ${status}${hint}`, {
    retryAfterMs: answer.retryAfterMs,
  })
}
