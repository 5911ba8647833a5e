import { createHash, randomUUID } from 'node:crypto'
import {
  IdempotencyInFlightError,
  IdempotencyMismatchError,
  InvalidPayloadError,
  NoConnectionsError,
} from '../db/errors.ts'
import { hashFingerprint } from '../db/idempotency-keys.ts'
import type { Json } from '../db/json.ts'
import type { Tx } from '../db/tx.ts'
import type { Holdfast } from '../workers/holdfast.ts'
import { parseKeyHeader } from './idempotency-key.ts'
import { type Answer, type IdempotentResponse, loadAnswer, storeResponse } from './response.ts'

/**
 * What the adapters have in common: a request with the field Idempotency-Key is answered as
 * draft-ietf-httpapi-idempotency-key-header asks. The first call of a key runs the handler, in the transaction that commits
 * its response; every later one gets the same status, headers and body, byte for byte, since the first one's, too, was read
 * from what is stored. 400: the field is missing or malformed. 409: the first call is under way, with Retry-After. 422: the
 * key belongs to another request. 503: this process has no connection free for the work; nothing was done. These are problem details (RFC 9457).
 *
 * Only what the handler returns is stored, not what else the framework or its plugins add. What it throws, and what it
 * returns with a status from 500 on, is not: nothing of its work is committed, and a retry runs it again.
 */
export type IdempotencyOptions<Request> = {
  /**
   * Whose keys these are. Clients choose keys, so it must tell apart those who may not see each other's responses: the
   * account or tenant of the request, say. A text of 1 to 255 characters.
   */
  readonly scope: string | ((request: Request) => string | Promise<string>)
  /** false: a request without a key runs as well, and is not remembered; default true */
  readonly required?: boolean
  /** what a repeated request must have in common with the first; default method, path with query, and body */
  readonly fingerprint?: (request: Request) => Json | Promise<Json>
  /** how long responses are kept; milliseconds, default 24 hours */
  readonly ttlMs?: number
  /** how long a repeated request waits for the first one before it is answered with 409; milliseconds, default 0 */
  readonly wait?: number
  /** how large a response may be, as it is stored (bytes as base64, in JSON); default 1 MiB */
  readonly maxResponseBytes?: number
  /** URL of a page about the use of keys in this API: `type` and link of the problem details */
  readonly documentation?: string
}

/** `tx`: commits together with the response. `signal` aborts when the claim on the key is lost; nothing is committed then. */
export type IdempotentContext = { tx: Tx; signal: AbortSignal }

export type IdempotentHandler<Request> = (
  request: Request,
  context: IdempotentContext,
) => Promise<IdempotentResponse> | IdempotentResponse

/** What runs the calls: a Holdfast. */
export type Idempotent = Pick<Holdfast, 'idempotent'>

/** What an adapter knows of a request. */
export type RequestFacts = { key: string | undefined; method: string; path: string; body: unknown }

/** How long a response to a request without a key stands in the table, which nobody can ask for. */
const unaskedMs = 60_000

export async function answerOnce<Request>(
  hf: Idempotent,
  options: IdempotencyOptions<Request>,
  request: Request,
  facts: RequestFacts,
  handler: IdempotentHandler<Request>,
): Promise<Answer> {
  const problem = (status: number, title: string, detail: string, headers?: Answer['headers']) =>
    problemAnswer(options.documentation, { status, title, detail }, headers)
  const header = parseKeyHeader(facts.key)
  if (header === 'malformed')
    return problem(
      400,
      'Idempotency-Key is malformed',
      'Send one string of 1 to 255 ASCII characters, in quotes.',
    )
  if (header === 'missing' && options.required !== false)
    return problem(400, 'Idempotency-Key is missing', 'This operation requires the field Idempotency-Key.')
  const fingerprint = (await options.fingerprint?.(request)) ?? {
    method: facts.method,
    path: facts.path,
    body: comparable(facts.body),
  }
  try {
    hashFingerprint(fingerprint)
  } catch (error) {
    if (!(error instanceof InvalidPayloadError)) throw error
    return problem(400, 'The request cannot be compared with others', error.message)
  }
  const { scope, ttlMs, wait, maxResponseBytes } = options
  let begun = false
  try {
    const { response } = await hf.idempotent(
      {
        scope: typeof scope === 'function' ? await scope(request) : scope,
        key: header === 'missing' ? randomUUID() : header.key,
        fingerprint,
        ...(header === 'missing' ? { ttlMs: unaskedMs } : ttlMs !== undefined && { ttlMs }),
        ...(wait !== undefined && { wait }),
        ...(maxResponseBytes !== undefined && { maxResponseBytes }),
      },
      async (tx, { signal }) => {
        begun = true
        const stored = storeResponse(await handler(request, { tx, signal }))
        if (stored.status >= 500) throw new NotStored(loadAnswer(stored))
        return stored
      },
    )
    return loadAnswer(response)
  } catch (error) {
    if (error instanceof NotStored) return error.answer
    if (error instanceof IdempotencyInFlightError) {
      return problem(
        409,
        'A request is outstanding for this Idempotency-Key',
        'A request with the same Idempotency-Key is being processed. Repeat this one later.',
        { 'retry-after': String(Math.ceil(error.retryAfterMs / 1_000)) },
      )
    }
    if (error instanceof IdempotencyMismatchError) {
      return problem(
        422,
        'Idempotency-Key is already used',
        'This Idempotency-Key was used for another request. A new request needs a new key.',
      )
    }
    // What the handler did meanwhile may stand; then it is the handler's error.
    if (error instanceof NoConnectionsError && !begun) {
      return problem(
        503,
        'The service is busy',
        'Nothing was done. Repeat the request later, with the same Idempotency-Key.',
        { 'retry-after': '1' },
      )
    }
    throw error
  }
}

/** Takes an answer out of the transaction, which is rolled back. */
class NotStored extends Error {
  readonly answer: Answer

  constructor(answer: Answer) {
    super(`the handler answered with ${answer.status}`)
    this.answer = answer
  }
}

/** A parsed body as it is, bytes by their hash; what is neither is refused later. */
function comparable(body: unknown): Json {
  if (body === undefined || body === null) return null
  if (body instanceof Uint8Array) return { sha256: createHash('sha256').update(body).digest('hex') }
  return body as Json
}

/** RFC 9457, with the titles that the draft has in its examples. */
function problemAnswer(
  documentation: string | undefined,
  problem: { status: number; title: string; detail: string },
  headers: Answer['headers'] = {},
): Answer {
  const body = Buffer.from(JSON.stringify({ type: documentation ?? 'about:blank', ...problem }))
  const link =
    documentation === undefined ? {} : { link: `<${documentation}>; rel="describedby"; type="text/html"` }
  const all = { 'content-type': 'application/problem+json', ...link, ...headers }
  return { status: problem.status, headers: all, body }
}
