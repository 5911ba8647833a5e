/**
 * Compares what the databases have with the ledger of the payment service. `state` is what `readState` returns,
 * `ledger` the service's entries, `placed` the orders that were enqueued, `initial` the stock before them.
 */
export function reconcile({ placed, initial, state, ledger }) {
  const problems = []
  const report = placed.map(({ id }) => {
    const rows = state.orders.filter((order) => order.id === id)
    const charges = ledger.filter((entry) => entry.kind === 'charges' && entry.subject === id)
    const kept = charges.filter((charge) => !charge.undone)
    const confirmed = rows.length === 1
    if (rows.length > 1) problems.push(`${id} is there ${rows.length} times`)
    if (confirmed && kept.length !== 1) problems.push(`${id} is confirmed and charged ${kept.length} times`)
    if (confirmed && kept.some((charge) => charge.cents !== rows[0].cents))
      problems.push(`${id} is charged another amount than it has`)
    if (!confirmed && kept.length > 0) problems.push(`${id} is not there, and charged`)
    return { id, confirmed, charged: charges.length, refunded: charges.length - kept.length }
  })
  const shipped = state.orders.reduce((sum, order) => sum + order.quantity, 0)
  if (state.stock !== initial - shipped)
    problems.push(`the stock is ${state.stock}; ${initial} less the orders is ${initial - shipped}`)
  if (state.prepared > 0) problems.push(`${state.prepared} transactions are still prepared`)
  return { agrees: problems.length === 0, problems, orders: report, stock: state.stock, left: state.prepared }
}

/** Reads both databases. Work that changes nothing is a way to ask them where the URLs are Holdfast's. */
export async function readState(hf) {
  const { staged } = await hf.runDistributed(`read-state-${Date.now()}`, {
    stage: {
      primary: async (tx) => ({
        orders: await tx`select id, quantity, cents from orders order by id`,
        prepared: await tx`select gid from pg_prepared_xacts where gid like '%/job:%'`,
      }),
      inventory: async (tx) => await tx`select sum(quantity)::int as quantity from stock`,
    },
  })
  const { orders, prepared } = staged.primary
  return { orders, prepared: prepared.length, stock: staged.inventory[0].quantity }
}
