import fastify from 'fastify'
import { createHoldfast } from 'holdfast'
import { idempotency } from 'holdfast/fastify'
import { callService } from '../shared/call-service.mjs'
import config from './holdfast.config.mjs'

const hf = await createHoldfast(config)
const app = fastify()
// Whose keys they are: what your authentication says. A key of one account means nothing to another.
const once = idempotency(hf, { scope: (request) => request.headers['x-account'] ?? 'nobody' })

app.post(
  '/orders',
  once(async (request, { tx, signal }) => {
    const { item } = request.body
    // `tx` commits together with the response; when this process dies, neither is there.
    const [order] = await tx`insert into orders (item) values (${item}) returning id, item`
    // What is done outside of `tx` may be done again, so it is a question, or has a key of its own.
    await callService(`${process.env.CREDIT_URL}/checks`, {
      key: `${item}-${order.id}`,
      body: { subject: item },
      signal,
    })
    return { status: 201, headers: { location: `/orders/${order.id}` }, json: order }
  }),
)

async function close() {
  await app.close()
  await hf.close()
}
const stop = () => {
  void close().finally(() => process.exit())
}
process.once('SIGTERM', stop)
// The script that started it is gone.
process.once('disconnect', stop)

await app.listen({ host: '127.0.0.1', port: 0 })
process.send?.({ url: `http://127.0.0.1:${app.server.address().port}` })
