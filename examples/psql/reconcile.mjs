import { allOrNothing } from '../shared/all-or-nothing.mjs'

/**
 * An order that was placed has one row, one job, one label and one event in the warehouse; one that was refused has
 * nothing. `told` is what psql said, `initial` the stock before it, `shop` and `events` what the two read-*.sql print.
 */
export function reconcile({ told, initial, shop, events }) {
  const { orders: rows, jobs, labels, taken, pieces } = shop
  const { problems, orders } = allOrNothing({ told, found: { orders: rows, jobs, labels, events } })
  if (pieces !== initial - taken)
    problems.push(`the stock is ${pieces}; ${initial} less the orders is ${initial - taken}`)
  return { agrees: problems.length === 0, problems, orders, stock: pieces }
}
