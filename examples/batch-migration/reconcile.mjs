/** `state` is what `readState` returns, `rows` how many invoices there are, `proved` what `verify` said. */
export function reconcile({ rows, state, proved }) {
  const problems = []
  if (state.rows !== rows) problems.push(`there are ${state.rows} invoices, not ${rows}`)
  if (state.skipped > 0) problems.push(`${state.skipped} invoices were not converted`)
  if (state.doubled > 0) problems.push(`${state.doubled} invoices were converted more than once`)
  if (state.wrong > 0) problems.push(`${state.wrong} invoices have other cents than their amount says`)
  if (!proved) problems.push('verify does not prove that each row was processed exactly once')
  return { agrees: problems.length === 0, problems, ...state }
}

/** Reads the database. Work that changes nothing is a way to ask it where the URL is Holdfast's. */
export async function readState(hf) {
  const { staged } = await hf.runDistributed(`read-state-${Date.now()}`, {
    stage: async (tx) =>
      await tx`select count(*)::int as rows,
        count(*) filter (where conversions = 0)::int as skipped,
        count(*) filter (where conversions > 1)::int as doubled,
        count(*) filter (where conversions > 0 and cents is distinct from round(amount::numeric * 100))::int as wrong
      from invoices`,
  })
  return staged[0]
}
