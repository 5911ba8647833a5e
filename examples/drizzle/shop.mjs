// node shop.mjs ORDER ARTICLE [FAULT]: a service that places one order, as its own process. It knows of the job nothing
// but the name. FAULT: `refuse` the order when all is written; `stall` between the statements.
import { TransactionRollbackError } from 'drizzle-orm'
import { drizzle } from 'drizzle-orm/node-postgres'
import { createProducer } from 'holdfast'
import pg from 'pg'
import { waitToBeKilled } from '../shared/processes.mjs'
import { orders } from './schema.mjs'

const [id, article, fault] = process.argv.slice(2)
const client = new pg.Client({ connectionString: process.env.DATABASE_URL })
await client.connect()
// Made with a client and not with a pool: its transactions are this client's, so Holdfast can write in them.
const db = drizzle(client)
const producer = createProducer()

async function placeOrder() {
  await db.transaction(async (tx) => {
    await tx.insert(orders).values({ id, article, address: { street: "Ship's Road 1", floor: null } })
    await producer.enqueue('ship-order', { id }, { tx: client })
    if (fault === 'stall') await waitToBeKilled('the order and the job are written, nothing is committed')
    await producer.publish(client, { type: 'order.placed', subject: id, data: { article } })
    if (fault === 'refuse') tx.rollback()
  })
}

try {
  await placeOrder()
  console.log('placed')
} catch (error) {
  if (!(error instanceof TransactionRollbackError)) throw error
  console.log('refused')
} finally {
  await producer.close()
  await client.end()
}
