/**
 * Who was welcomed is an active user with one account, one job and one mail, however often the event came; who was not
 * has nothing. `told` is what each person heard, `state` what readState returns.
 */
export function reconcile({ told, state }) {
  const problems = []
  const { users, active, jobs, accounts, mails, deliveries } = state
  const people = told.map(({ login, answer }) => {
    const count = (logins) => logins.filter((found) => found === login).length
    const there = {
      users: count(users),
      active: count(active),
      jobs: count(jobs),
      accounts: count(accounts),
      mails: count(mails),
    }
    for (const [kind, number] of Object.entries(there))
      if (number !== (answer === 'welcome' ? 1 : 0))
        problems.push(`${login} heard ${answer} and has ${number} ${kind}`)
    return { login, answer, ...there, deliveries: count(deliveries) }
  })
  const known = new Set(told.map(({ login }) => login))
  for (const login of new Set([...users, ...jobs, ...accounts, ...mails, ...deliveries]))
    if (!known.has(login)) problems.push(`nobody has heard of ${login}`)
  // Otherwise the run has shown nothing.
  if (!people.some(({ deliveries }) => deliveries > 1)) problems.push('no event came twice')
  return { agrees: problems.length === 0, problems, people }
}

/** Reads both databases, each by a Kysely of its own. */
export async function readState({ primary, mailing }) {
  const logins = async (query) => (await query.execute()).map(({ login }) => login)
  const jobs = await primary.selectFrom('holdfast.jobs').select('input').execute()
  return {
    users: await logins(primary.selectFrom('users').select('login')),
    active: await logins(primary.selectFrom('users').select('login').where('active', '=', true)),
    jobs: jobs.map(({ input }) => input.login),
    accounts: await logins(primary.selectFrom('accounts').select('login')),
    mails: await logins(mailing.selectFrom('mails').select('login')),
    deliveries: await logins(mailing.selectFrom('deliveries').select('login')),
  }
}
