import { createHoldfast } from 'holdfast'
import { ownFolder, startProcess } from '../shared/processes.mjs'
import { startService } from '../shared/stub-service.mjs'
import config from './holdfast.config.mjs'
import { placeOrder } from './place-order.mjs'
import { readState, reconcile } from './reconcile.mjs'

const initial = 20
const placed = [
  { id: 'order-1', quantity: 1, happens: 'nothing goes wrong' },
  { id: 'order-2', quantity: 2, happens: 'the service fails before it charges', fault: 'error-before' },
  { id: 'order-3', quantity: 1, happens: 'the service fails after it charged', fault: 'error-after' },
  { id: 'order-4', quantity: 3, happens: 'the service charges and never answers', fault: 'time-out' },
  { id: 'order-5', quantity: 1, happens: 'the service is slow', fault: 'slow' },
  { id: 'order-6', quantity: 2, happens: 'the card is refused', fault: 'refuse' },
  { id: 'order-7', quantity: 99, happens: 'there is not that much in stock' },
  {
    id: 'order-8',
    quantity: 1,
    happens: 'the worker is killed between charge and commit',
    fault: 'time-out',
  },
]

process.env.LOG_LEVEL ??= 'error'
const folder = await ownFolder()
const payments = await startService(
  Object.fromEntries(placed.flatMap(({ id, fault }) => (fault ? [[`charges ${id}`, fault]] : []))),
)
process.env.PAYMENTS_URL = payments.url
const hf = await createHoldfast({ ...config, migrate: true })
let worker
try {
  await hf.runDistributed('set-up', {
    stage: {
      primary: async (tx) => {
        await tx`create table orders (id text primary key, sku text not null, quantity int not null, cents int not null)`
      },
      inventory: async (tx) => {
        await tx`create table stock (sku text primary key, quantity int not null check (quantity >= 0))`
        await tx`insert into stock values ('teapot', ${initial})`
      },
    },
  })

  worker = startProcess(new URL('./worker.mjs', import.meta.url))
  const charged = payments.done('charges order-8')
  const jobs = []
  for (const { id, quantity } of placed) {
    jobs.push(await hf.enqueue(placeOrder, { id, sku: 'teapot', quantity, cents: 1_250 * quantity }))
  }

  // The money is taken, the order is not committed, and the only process that knows is gone.
  await charged
  await worker.kill()
  console.log('the worker was killed right after the service had charged order-8')
  worker = startProcess(new URL('./worker.mjs', import.meta.url))

  for (const job of jobs) await hf.jobs.wait(job)
  // A job has failed once nothing of it can commit any more; its refund may come a moment later.
  while ((await hf.listDistributed()).length > 0) await new Promise((resolve) => setTimeout(resolve, 100))
  await worker.stop()

  const result = reconcile({ placed, initial, state: await readState(hf), ledger: payments.ledger() })
  for (const [i, { id, confirmed, charged: times, refunded }] of result.orders.entries()) {
    console.log(
      `${id}  ${placed[i].happens.padEnd(47)} ${confirmed ? 'confirmed' : 'refused  '}  charged ${times}, refunded ${refunded}`,
    )
  }
  console.log(JSON.stringify(result))
  process.exitCode = result.agrees ? 0 : 1
} finally {
  await worker?.kill()
  await hf.close()
  payments.close()
  await folder.remove()
}
