import { describe, expect, it } from 'vitest'
import { exampleLimitMs, importExample, outputInReadme, runExample } from '../support/example.ts'

type Facts = {
  people: string[]
  state: { employees: string[]; prepared: number }
  ledger: { kind: string; subject: string; undone: boolean }[]
}
type Result = { agrees: boolean; problems: string[] }

const account = (kind: string, undone = false) => ({ kind, subject: 'ada', undone })
const state = { employees: ['ada'], prepared: 0 }

describe('examples/voting', () => {
  it(
    'hires whom every service is ready for, over processes that are killed',
    async () => {
      const { code, last, stdout } = await runExample('voting/run.mjs')
      expect({ code, problems: last.problems }).toEqual({ code: 0, problems: [] })
      expect(last).toMatchObject({ agrees: true, left: 0 })
      expect(last.people).toEqual([
        { person: 'ada', hired: true, accounts: ['email', 'payroll'] },
        { person: 'bob', hired: false, accounts: [] },
        { person: 'cleo', hired: true, accounts: ['email', 'payroll'] },
      ])
      expect(outputInReadme('voting')).toContain('payroll votes ready on ada: committed, 2 of 2 ready')
      expect(stdout).toContain(outputInReadme('voting'))
    },
    exampleLimitMs,
  )

  it('says who is hired without an account, and who has one without being hired', async () => {
    const { reconcile } = await importExample<{ reconcile: (facts: Facts) => Result }>('voting/reconcile.mjs')
    const problemsOf = (changes: Partial<Facts>) => {
      const ledger = [account('email'), account('payroll')]
      const { agrees, problems } = reconcile({ people: ['ada'], state, ledger, ...changes })
      expect(agrees).toBe(problems.length === 0)
      return problems
    }
    expect(problemsOf({})).toEqual([])
    expect(problemsOf({ ledger: [account('email')] })).toEqual(['ada is hired 1 times and has: email'])
    expect(problemsOf({ ledger: [account('email', true), account('payroll', true)] })).toEqual([
      'ada is hired 1 times and has: nothing',
    ])
    expect(problemsOf({ state: { employees: [], prepared: 0 } })).toEqual([
      'ada is hired 0 times and has: email, payroll',
    ])
    expect(problemsOf({ state: { ...state, prepared: 1 } })).toEqual(['1 transactions are still prepared'])
  })
})
