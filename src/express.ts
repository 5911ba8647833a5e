import type { Request, RequestHandler } from 'express'
import { InvalidConfigError } from './db/errors.ts'
import {
  answerOnce,
  type IdempotencyOptions,
  type Idempotent,
  type IdempotentHandler,
} from './http/idempotent-request.ts'

export type { IdempotencyOptions, IdempotentContext, IdempotentHandler } from './http/idempotent-request.ts'
export type { IdempotentResponse } from './http/response.ts'

/**
 * For routes whose requests carry an Idempotency-Key: `app.post('/orders', express.json(), once(async (req, { tx }) => …))`
 * with `const once = idempotency(hf, { scope })`. The handler returns `{ status, headers, json }` or `{ …, body }`, which is
 * committed with its work and sent after that; see docs/idempotency.md. Errors go to `next`.
 */
export function idempotency(
  hf: Idempotent,
  options: IdempotencyOptions<Request>,
): <P, B, Q>(handler: IdempotentHandler<Request<P, unknown, B, Q>>) => RequestHandler<P, unknown, B, Q> {
  return (handler) => async (req, res, next) => {
    try {
      if (options.fingerprint === undefined) checkParsed(req)
      const facts = {
        key: req.headers['idempotency-key']?.toString(),
        method: req.method,
        path: req.originalUrl,
        body: req.body,
      }
      const run: IdempotentHandler<Request> = (_, context) => handler(req, context)
      const { status, headers, body } = await answerOnce(hf, options, req as unknown as Request, facts, run)
      res.statusCode = status
      // Not by res.set, which would add a charset to what the handler said.
      for (const [name, value] of Object.entries(headers)) res.setHeader(name, value)
      res.end(body)
    } catch (error) {
      next(error)
    }
  }
}

/** Requests with different bodies would count as equal. */
function checkParsed({ body, headers }: { body: unknown; headers: Request['headers'] }): void {
  const hasBody = headers['transfer-encoding'] !== undefined || Number(headers['content-length'] ?? 0) > 0
  if (!hasBody || body !== undefined) return
  throw new InvalidConfigError([
    'the body of a request with an Idempotency-Key was not parsed: put express.json() (or raw, text, urlencoded) before idempotency, or give it a `fingerprint`',
  ])
}
