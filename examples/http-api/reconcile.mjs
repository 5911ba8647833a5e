/**
 * One order for each key, and each response about the order that is there. `calls` has what each request was answered,
 * `orders` the rows of the database.
 */
export function reconcile({ calls, orders }) {
  const problems = []
  const keys = [...new Set(calls.map((call) => call.key))]
  for (const key of keys) {
    const created = calls.filter((call) => call.key === key && call.status === 201)
    const bodies = new Set(created.map((call) => call.body))
    if (created.length === 0) problems.push(`nobody got an order for ${key}`)
    if (bodies.size > 1) problems.push(`${key} got ${bodies.size} different responses`)
    for (const body of bodies) {
      const { id, item } = JSON.parse(body)
      if (orders.filter((order) => order.id === id && order.item === item).length !== 1)
        problems.push(`the order ${id} that ${key} was told of is not there`)
    }
  }
  if (orders.length !== keys.length) problems.push(`${orders.length} orders for ${keys.length} keys`)
  return { agrees: problems.length === 0, problems, keys: keys.length, orders: orders.length }
}

/** Reads the database. Work that changes nothing is a way to ask it where the URL is Holdfast's. */
export async function readOrders(hf) {
  const { staged } = await hf.runDistributed(`read-orders-${Date.now()}`, {
    stage: async (tx) => await tx`select id, item from orders order by id`,
  })
  return staged
}
