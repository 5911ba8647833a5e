import { validateHeaderName, validateHeaderValue } from 'node:http'
import { InvalidPayloadError } from '../db/errors.ts'
import type { Json } from '../db/json.ts'
import { messageOf } from '../db/message-of.ts'

type Head = {
  /** default 200 */
  readonly status?: number
  /** stored, but for those that belong to a connection or to one response (hop-by-hop, `date`, `content-length`) */
  readonly headers?: Readonly<Record<string, string | readonly string[]>>
}

/** What a handler answers with: JSON, or text or bytes as they are. Its content type is the usual one unless `headers` says. */
export type IdempotentResponse =
  | (Head & { readonly json: Json; readonly body?: never })
  | (Head & { readonly body?: string | Uint8Array; readonly json?: never })

/** A response that is ready to be sent. */
export type Answer = { status: number; headers: Record<string, string | string[]>; body: Buffer }

/** An answer as it is stored: text as text, everything else as base64. */
type Stored = {
  readonly status: number
  readonly headers: Readonly<Record<string, string | readonly string[]>>
  readonly text?: string
  readonly base64?: string
}

/** Of the connection (RFC 9110, section 7.6.1), or made for each response by whoever sends it. */
const notStored = new Set([
  'connection',
  'content-length',
  'date',
  'keep-alive',
  'proxy-authenticate',
  'proxy-authorization',
  'proxy-connection',
  'te',
  'trailer',
  'transfer-encoding',
  'upgrade',
])
const withoutBody = new Set([204, 205, 304])

/** Throws InvalidPayloadError for what could not be sent, while the transaction can still be rolled back. */
export function storeResponse(response: IdempotentResponse): Stored & Json {
  const { status = 200 } = response
  if (!Number.isInteger(status) || status < 200 || status > 599)
    throw new InvalidPayloadError(`${status} is no status of a response; use 200 to 599`)
  const { type, ...content } = contentOf(response)
  const headers = checkHeaders(response.headers ?? {})
  if (type !== undefined && !('content-type' in headers)) headers['content-type'] = type
  if (withoutBody.has(status) && (content.text ?? content.base64 ?? '') !== '')
    throw new InvalidPayloadError(`a response of status ${status} has no body`)
  return { status, headers, ...content }
}

export function loadAnswer({ status, headers, text, base64 }: Stored): Answer {
  const body = base64 === undefined ? Buffer.from(text ?? '') : Buffer.from(base64, 'base64')
  return { status, headers: headers as Answer['headers'], body }
}

function contentOf({ json, body }: IdempotentResponse): { type?: string; text?: string; base64?: string } {
  if (json !== undefined) return { type: 'application/json', ...textOrBytes(JSON.stringify(json)) }
  if (body === undefined) return {}
  if (typeof body === 'string') return { type: 'text/plain; charset=utf-8', ...textOrBytes(body) }
  if (!(body instanceof Uint8Array))
    throw new InvalidPayloadError('the body of a response is a string or bytes; anything else goes as `json`')
  return { type: 'application/octet-stream', base64: Buffer.from(body).toString('base64') }
}

/** What PostgreSQL cannot store as text goes as the bytes that are sent. */
function textOrBytes(text: string): { text: string } | { base64: string } {
  const storable = text.isWellFormed() && !text.includes('\u0000')
  return storable ? { text } : { base64: Buffer.from(text).toString('base64') }
}

function checkHeaders(
  headers: Readonly<Record<string, string | readonly string[]>>,
): Record<string, string | string[]> {
  const kept: Record<string, string | string[]> = {}
  for (const [given, value] of Object.entries(headers)) {
    const name = given.toLowerCase()
    if (notStored.has(name)) continue
    try {
      validateHeaderName(name)
      for (const one of [value].flat()) validateHeaderValue(name, one)
    } catch (cause) {
      throw new InvalidPayloadError(`a header of the response cannot be sent: ${messageOf(cause)}`, { cause })
    }
    kept[name] = typeof value === 'string' ? value : [...value]
  }
  return kept
}
