import { allOrNothing } from '../shared/all-or-nothing.mjs'

/**
 * An order that was placed has one row, one job, one shipment and one event; one that was refused has nothing.
 * `told` is what the clients heard, `filled` how many pieces ever came in, `state` what readState returns.
 */
export function reconcile({ told, filled, state }) {
  const { pieces, ...found } = state
  const { problems, orders } = allOrNothing({ told, found })
  if (pieces !== filled - state.shipments.length)
    problems.push(
      `the stock is ${pieces}; ${filled} less the shipments is ${filled - state.shipments.length}`,
    )
  return { agrees: problems.length === 0, problems, orders, stock: pieces }
}

/** Reads both databases, each by a client of node-postgres. */
export async function readState({ primary, reporting }) {
  const ids = async (client, text) => (await client.query(text)).rows.map(({ id }) => id)
  const stock = await primary.query('select sum(pieces)::int as pieces from stock')
  return {
    orders: await ids(primary, 'select id from orders'),
    jobs: await ids(primary, `select input ->> 'id' as id from holdfast.jobs`),
    shipments: await ids(primary, 'select "order" as id from shipments'),
    events: await ids(reporting, 'select subject as id from holdfast.inbox'),
    pieces: stock.rows[0].pieces,
  }
}
