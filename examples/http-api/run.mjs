import { createHoldfast } from 'holdfast'
import { ownFolder, startProcess } from '../shared/processes.mjs'
import { startService } from '../shared/stub-service.mjs'
import config from './holdfast.config.mjs'
import { readOrders, reconcile } from './reconcile.mjs'

process.env.LOG_LEVEL ??= 'error'
const folder = await ownFolder()
const credit = await startService({ 'checks kettle': 'slow', 'checks samovar': 'time-out' })
process.env.CREDIT_URL = credit.url
const hf = await createHoldfast({ ...config, migrate: true })
const calls = []
let server
let url

async function startServer() {
  server = startProcess(new URL('./server.mjs', import.meta.url))
  url = (await server.message()).url
}

/** One request; the answer is printed and kept. No answer counts as one, since a client has to live with it. */
async function order(key, item, what) {
  const request = {
    method: 'POST',
    headers: { 'content-type': 'application/json', 'idempotency-key': `"${key}"`, 'x-account': 'acme' },
    body: JSON.stringify({ item }),
  }
  const call = await fetch(`${url}/orders`, request).then(
    async (response) => ({
      status: response.status,
      body: await response.text(),
      retryAfter: response.headers.get('retry-after'),
    }),
    () => ({ status: 'no answer', body: '' }),
  )
  calls.push({ key, ...call })
  const text = call.status === 201 ? call.body : call.body && JSON.parse(call.body).title
  console.log(`${what.padEnd(38)} ${call.status}  ${text}`)
  return call
}

try {
  await hf.runDistributed('set-up', {
    stage: async (tx) => {
      await tx`create table orders (id int generated always as identity primary key, item text not null)`
    },
  })
  await startServer()

  await order('key-1', 'teapot', 'the first request')
  await order('key-1', 'teapot', 'the same again')
  await order('key-1', 'teacup', 'the same key, another body')

  // Two at once: the second comes while the first waits for the credit check.
  const waiting = credit.done('checks kettle')
  const first = order('key-2', 'kettle', 'two at once, the one')
  await waiting
  await Promise.all([first, order('key-2', 'kettle', 'two at once, the other')])
  await order('key-2', 'kettle', 'the other once more')

  // The order is inserted and not committed when the server dies. The client has no answer, and asks again.
  const inTheMiddle = credit.done('checks samovar')
  const lost = order('key-3', 'samovar', 'the server is killed in the middle')
  await inTheMiddle
  await server.kill()
  await lost
  await startServer()
  for (;;) {
    const { status, retryAfter } = await order('key-3', 'samovar', 'the same again')
    if (status !== 409) break
    // The key is still claimed for the dead process; Retry-After says how long at most.
    await new Promise((resolve) => setTimeout(resolve, 1_000 * Number(retryAfter ?? 1)))
  }
  await server.stop()

  const result = reconcile({ calls, orders: await readOrders(hf) })
  console.log(JSON.stringify({ ...result, statuses: calls.map((call) => call.status) }))
  process.exitCode = result.agrees ? 0 : 1
} finally {
  await server?.kill()
  await hf.close()
  credit.close()
  await folder.remove()
}
