import { UnrecoverableError } from 'bullmq'
import { defineJob } from 'holdfast'
import { z } from 'zod'
import { callService } from '../shared/call-service.mjs'

/** The order, the stock in another database, and the charge: all three, or none of them. */
export const placeOrder = defineJob({
  name: 'place-order',
  input: z.object({ id: z.string(), sku: z.string(), quantity: z.int().positive(), cents: z.int() }),
  participants: ['primary', 'inventory'],
  retry: { attempts: 3, backoffMs: 200 },

  // Both databases are prepared when this has returned: durable and locked, but not to be seen by anybody yet.
  async stage({ txs, input }) {
    await txs.primary`insert into orders (id, sku, quantity, cents)
      values (${input.id}, ${input.sku}, ${input.quantity}, ${input.cents})`
    const reserved = await txs.inventory`update stock set quantity = quantity - ${input.quantity}
      where sku = ${input.sku} and quantity >= ${input.quantity} returning sku`
    if (reserved.length === 0) throw new UnrecoverableError(`${input.sku} is out of stock`)
    return { cents: input.cents }
  },

  // May run twice, with the same key: when a worker dies in here, the next one calls again for what is staged.
  async effects({ staged, input, idempotencyKey, signal }) {
    await callService(`${process.env.PAYMENTS_URL}/charges`, {
      key: idempotencyKey,
      body: { subject: input.id, cents: staged.cents },
      signal,
    })
  },

  // After the rollback. Whether the charge was made is not known here, and need not be: the refund names its key.
  async compensate({ effectsKey, idempotencyKey, signal }) {
    await callService(`${process.env.PAYMENTS_URL}/charges/${encodeURIComponent(effectsKey)}`, {
      method: 'DELETE',
      key: idempotencyKey,
      signal,
    })
  },
})
