import { describe, expect, it } from 'vitest'
import { exampleLimitMs, importExample, outputInReadme, runExample } from '../support/example.ts'

type Entry = { kind: string; subject: string; userId: number; undone: boolean }
type Facts = {
  logins: string[]
  state: { users: { id: number; login: string; audited: number }[]; audits: number; prepared: number }
  ledger: Entry[]
}
type Result = { agrees: boolean; problems: string[] }

const entry = (kind: string, changes: Partial<Entry> = {}): Entry => {
  return { kind, subject: 'ada', userId: 1, undone: false, ...changes }
}
const provisioned = [entry('mailboxes'), entry('directory'), entry('teams')]
const state = { users: [{ id: 1, login: 'ada', audited: 1 }], audits: 1, prepared: 0 }

describe('examples/user-onboarding', () => {
  it(
    'leaves a mailbox exactly where there is a user',
    async () => {
      const { code, last, stdout } = await runExample('user-onboarding/run.mjs')
      expect({ code, problems: last.problems }).toEqual({ code: 0, problems: [] })
      expect(last).toMatchObject({ agrees: true, left: 0 })
      const user = (login: string, n: number) => {
        return { login, exists: n === 1, mailboxes: n, directory: n, teams: n }
      }
      expect(last.users).toEqual([
        user('ada', 1),
        user('bob', 1),
        user('cleo', 1),
        user('dan', 1),
        user('eve', 0),
        user('finn', 0),
        user('gil', 1),
      ])
      expect(outputInReadme('user-onboarding')).toContain('the worker was killed')
      expect(stdout).toContain(outputInReadme('user-onboarding'))
    },
    exampleLimitMs,
  )

  it('says where database and services disagree', async () => {
    const { reconcile } = await importExample<{ reconcile: (facts: Facts) => Result }>(
      'user-onboarding/reconcile.mjs',
    )
    const facts = { logins: ['ada'], state, ledger: provisioned }
    expect(reconcile(facts)).toMatchObject({ agrees: true, problems: [] })
    const problemsOf = (changes: Partial<Facts>) => {
      const { agrees, problems } = reconcile({ ...facts, ...changes })
      expect(agrees).toBe(false)
      return problems
    }
    expect(problemsOf({ ledger: provisioned.slice(1) })).toEqual(['ada: 1 in users, 0 in mailboxes'])
    expect(problemsOf({ ledger: [...provisioned, entry('teams')] })).toEqual(['ada: 1 in users, 2 in teams'])
    expect(problemsOf({ state: { users: [], audits: 0, prepared: 0 } })).toEqual([
      'ada: 0 in users, 1 in mailboxes',
      'ada: 0 in users, 1 in directory',
      'ada: 0 in users, 1 in teams',
    ])
    expect(problemsOf({ ledger: [entry('mailboxes', { userId: 2 }), ...provisioned.slice(1)] })).toEqual([
      'ada: mailboxes has it for another user id',
    ])
    expect(problemsOf({ state: { ...state, audits: 2 } })).toEqual(['there are audit rows without a user'])
    expect(problemsOf({ state: { ...state, prepared: 1 } })).toEqual(['1 transactions are still prepared'])
  })
})
