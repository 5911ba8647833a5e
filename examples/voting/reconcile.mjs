const services = ['email', 'payroll']

/** Everybody who is hired has an account with every service, and nobody else has one with any. */
export function reconcile({ people, state, ledger }) {
  const problems = []
  const report = people.map((person) => {
    const hired = state.employees.filter((name) => name === person).length
    const accounts = services.filter((service) =>
      ledger.some((entry) => entry.kind === service && entry.subject === person && !entry.undone),
    )
    if (accounts.length !== (hired === 1 ? services.length : 0))
      problems.push(`${person} is hired ${hired} times and has: ${accounts.join(', ') || 'nothing'}`)
    return { person, hired: hired === 1, accounts }
  })
  if (state.prepared > 0) problems.push(`${state.prepared} transactions are still prepared`)
  return { agrees: problems.length === 0, problems, people: report, left: state.prepared }
}

/** Reads the database. Work that changes nothing is a way to ask it where the URL is Holdfast's. */
export async function readState(hf) {
  const { staged } = await hf.runDistributed(`read-state-${Date.now()}`, {
    stage: async (tx) => ({
      employees: await tx`select name from employees order by name`,
      prepared: await tx`select gid from pg_prepared_xacts where gid like '%/hire-%'`,
    }),
  })
  return { employees: staged.employees.map(({ name }) => name), prepared: staged.prepared.length }
}
