import { UnrecoverableError } from 'bullmq'
import { eq, sql } from 'drizzle-orm'
import { defineJob } from 'holdfast'
import { z } from 'zod'
import { drizzleOver } from './drizzle-over.mjs'
import { orders, shipments, stock } from './schema.mjs'

export const shipOrder = defineJob({
  name: 'ship-order',
  input: z.object({ id: z.string() }),
  async stage({ tx, input }) {
    const db = drizzleOver(tx)
    const [order] = await db.select().from(orders).where(eq(orders.id, input.id))
    if (order === undefined) throw new UnrecoverableError(`there is no ${input.id}`)
    await db.insert(shipments).values({ order: order.id, address: order.address })
    // Refused by the check when there is none left; the shipment is rolled back with it.
    await db
      .update(stock)
      .set({ pieces: sql`${stock.pieces} - 1` })
      .where(eq(stock.article, order.article))
  },
})
