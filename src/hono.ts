import type { Context, Env, Input } from 'hono'
import {
  answerOnce,
  type IdempotencyOptions,
  type Idempotent,
  type IdempotentHandler,
} from './http/idempotent-request.ts'

export type { IdempotencyOptions, IdempotentContext, IdempotentHandler } from './http/idempotent-request.ts'
export type { IdempotentResponse } from './http/response.ts'

/**
 * For routes whose requests carry an Idempotency-Key: `app.post('/orders', once(async (c, { tx }) => …))` with
 * `const once = idempotency(hf, { scope })`. The handler returns `{ status, headers, json }` or `{ …, body }`, which is
 * committed with its work and sent after that; see docs/idempotency.md.
 */
export function idempotency<E extends Env = Env>(
  hf: Idempotent,
  options: IdempotencyOptions<Context<E>>,
): <P extends string, I extends Input>(
  handler: IdempotentHandler<Context<E, P, I>>,
) => (c: Context<E, P, I>) => Promise<Response> {
  return (handler) => async (c) => {
    const url = new URL(c.req.url)
    const facts = {
      key: c.req.header('idempotency-key'),
      method: c.req.method,
      path: url.pathname + url.search,
      // Hono keeps them: the handler can read the body again in any form.
      body: new Uint8Array(await c.req.arrayBuffer()),
    }
    const run: IdempotentHandler<Context<E>> = (_, context) => handler(c, context)
    const { status, headers, body } = await answerOnce(hf, options, c as unknown as Context<E>, facts, run)
    const all = new Headers()
    for (const [name, value] of Object.entries(headers))
      for (const one of [value].flat()) all.append(name, one)
    return new Response(body.length === 0 ? null : new Uint8Array(body), { status, headers: all })
  }
}
