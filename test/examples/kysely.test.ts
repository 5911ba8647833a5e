import { describe, expect, it } from 'vitest'
import { exampleLimitMs, importExample, outputInReadme, runExample } from '../support/example.ts'

type Kind = 'users' | 'active' | 'jobs' | 'accounts' | 'mails' | 'deliveries'
type State = Record<Kind, string[]>
type Facts = { told: { login: string; answer: string }[]; state: State }
type Result = { agrees: boolean; problems: string[] }

const ada = ['ada']
const state: State = {
  users: ada,
  active: ada,
  jobs: ada,
  accounts: ada,
  mails: ada,
  deliveries: ['ada', 'ada'],
}

describe('examples/kysely', () => {
  it(
    'sends one mail for an event that came twice, and has nothing of a sign-up that was rolled back',
    async () => {
      const { code, last, stdout } = await runExample('kysely/run.mjs')
      expect({ code, problems: last.problems }).toEqual({ code: 0, problems: [] })
      const welcome = { answer: 'welcome', users: 1, active: 1, jobs: 1, accounts: 1, mails: 1 }
      const none = { users: 0, active: 0, jobs: 0, accounts: 0, mails: 0, deliveries: 0 }
      expect(last).toMatchObject({
        agrees: true,
        people: [
          { login: 'ada', ...welcome },
          { login: 'cleo', answer: 'taken', ...none },
          { login: 'bob', ...welcome, deliveries: 2 },
        ],
      })
      expect(outputInReadme('kysely')).toContain('new, then seen before')
      expect(stdout).toContain(outputInReadme('kysely'))
    },
    exampleLimitMs,
  )

  it('says who has what, and when nothing came twice', async () => {
    const { reconcile } = await importExample<{ reconcile: (facts: Facts) => Result }>('kysely/reconcile.mjs')
    const problemsOf = (changes: Partial<State>, answer = 'welcome') => {
      const told = [{ login: 'ada', answer }]
      const { agrees, problems } = reconcile({ told, state: { ...state, ...changes } })
      expect(agrees).toBe(problems.length === 0)
      return problems
    }
    expect(problemsOf({})).toEqual([])
    expect(problemsOf({ active: [] })).toEqual(['ada heard welcome and has 0 active'])
    expect(problemsOf({ accounts: ['ada', 'ada'] })).toEqual(['ada heard welcome and has 2 accounts'])
    expect(problemsOf({ mails: ['ada', 'ada'] })).toEqual(['ada heard welcome and has 2 mails'])
    expect(problemsOf({ deliveries: ['ada'] })).toEqual(['no event came twice'])
    expect(problemsOf({ deliveries: ['ada', 'ada', 'eve'] })).toEqual(['nobody has heard of eve'])
    const none = { users: [], active: [], accounts: [], mails: [] }
    expect(problemsOf(none, 'taken')).toEqual(['ada heard taken and has 1 jobs'])
  })
})
