/**
 * Whatever belongs to an order is there once, or nothing of it is. `told` has what the client of each order heard last
 * (`placed` or `refused`), `found` for each kind of thing the ids of the orders that the databases have one for.
 */
export function allOrNothing({ told, found }) {
  const problems = []
  const kinds = Object.entries(found)
  const orders = told.map(({ id, answer }) => {
    const counts = kinds.map(([kind, ids]) => [kind, ids.filter((found) => found === id).length])
    for (const [kind, count] of counts)
      if (count !== (answer === 'placed' ? 1 : 0))
        problems.push(`${id} was ${answer} and has ${count} ${kind}`)
    return { id, answer, ...Object.fromEntries(counts) }
  })
  const known = new Set(told.map(({ id }) => id))
  for (const [kind, ids] of kinds)
    for (const id of new Set(ids)) if (!known.has(id)) problems.push(`nobody placed ${id}, which has ${kind}`)
  return { problems, orders }
}
