import type { FastifyReply, FastifyRequest, RouteGenericInterface } from 'fastify'
import {
  answerOnce,
  type IdempotencyOptions,
  type Idempotent,
  type IdempotentHandler,
} from './http/idempotent-request.ts'

export type { IdempotencyOptions, IdempotentContext, IdempotentHandler } from './http/idempotent-request.ts'
export type { IdempotentResponse } from './http/response.ts'

/**
 * For routes whose requests carry an Idempotency-Key: `app.post('/orders', once(async (request, { tx }) => …))` with
 * `const once = idempotency(hf, { scope })`. The handler returns `{ status, headers, json }` or `{ …, body }`, which is
 * committed with its work and sent after that; see docs/idempotency.md.
 */
export function idempotency(
  hf: Idempotent,
  options: IdempotencyOptions<FastifyRequest>,
): <R extends RouteGenericInterface = RouteGenericInterface>(
  handler: IdempotentHandler<FastifyRequest<R>>,
) => (request: FastifyRequest<R>, reply: FastifyReply) => Promise<FastifyReply> {
  return (handler) => async (request, reply) => {
    const facts = {
      key: request.headers['idempotency-key']?.toString(),
      method: request.method,
      path: request.url,
      body: request.body,
    }
    const run: IdempotentHandler<FastifyRequest> = (_, context) => handler(request, context)
    const { status, headers, body } = await answerOnce(hf, options, request as FastifyRequest, facts, run)
    // Without a payload it sets no content type of its own.
    return reply
      .code(status)
      .headers(headers)
      .send(body.length === 0 ? undefined : body)
  }
}
