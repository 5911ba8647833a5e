import { services } from './onboard-user.mjs'

/** A mailbox, an entry and a team exactly where there is a user with an audit row, and the user of that very row. */
export function reconcile({ logins, state, ledger }) {
  const problems = []
  const users = logins.map((login) => {
    const rows = state.users.filter((user) => user.login === login)
    if (rows.length > 1) problems.push(`${login} is there ${rows.length} times`)
    const provisioned = {}
    for (const service of services) {
      const entries = ledger.filter((e) => e.kind === service && e.subject === login && !e.undone)
      provisioned[service] = entries.length
      if (entries.length !== rows.length)
        problems.push(`${login}: ${rows.length} in users, ${entries.length} in ${service}`)
      if (entries.some((entry) => rows[0] && entry.userId !== rows[0].id))
        problems.push(`${login}: ${service} has it for another user id`)
    }
    return { login, exists: rows.length === 1, ...provisioned }
  })
  for (const { login, audited } of state.users)
    if (audited !== 1) problems.push(`${login} has ${audited} audit rows`)
  if (state.audits !== state.users.length) problems.push('there are audit rows without a user')
  if (state.prepared > 0) problems.push(`${state.prepared} transactions are still prepared`)
  return { agrees: problems.length === 0, problems, users, left: state.prepared }
}

/** Reads the database. Work that changes nothing is a way to ask it where the URL is Holdfast's. */
export async function readState(hf) {
  const { staged } = await hf.runDistributed(`read-state-${Date.now()}`, {
    stage: async (tx) => ({
      users: await tx`select id, login, (select count(*)::int from audit where user_id = users.id) as audited
        from users order by id`,
      audits: await tx`select count(*)::int as count from audit`,
      prepared: await tx`select gid from pg_prepared_xacts where gid like '%/job:%'`,
    }),
  })
  return { users: staged.users, audits: staged.audits[0].count, prepared: staged.prepared.length }
}
