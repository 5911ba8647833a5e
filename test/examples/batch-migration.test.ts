import { describe, expect, it } from 'vitest'
import { exampleLimitMs, importExample, runExample } from '../support/example.ts'

type State = { rows: number; skipped: number; doubled: number; wrong: number }
type Facts = { rows: number; state: State; proved: boolean }
type Result = { agrees: boolean; problems: string[] }

const state = { rows: 10, skipped: 0, doubled: 0, wrong: 0 }

describe('examples/batch-migration', () => {
  it(
    'converts every row once, over a killed worker and a row that cannot be converted',
    async () => {
      const { code, last, stdout } = await runExample('batch-migration/run.mjs')
      expect({ code, problems: last.problems }).toEqual({ code: 0, problems: [] })
      expect(last).toMatchObject({ agrees: true, rows: 20_000, skipped: 0, doubled: 0, setAside: 1 })
      // Killed on the way: some of it was done by the first worker, the rest by the second.
      expect(last.killedAt).toBeGreaterThan(0)
      expect(last.killedAt).toBeLessThan(20_000)
      expect(stdout).toMatch(/verify: not proved.*\nverify: proved/)
    },
    exampleLimitMs,
  )

  it('says what was skipped, doubled or converted wrongly', async () => {
    const { reconcile } = await importExample<{ reconcile: (facts: Facts) => Result }>(
      'batch-migration/reconcile.mjs',
    )
    const problemsOf = (changes: Partial<State>, proved = true) => {
      const { agrees, problems } = reconcile({ rows: 10, state: { ...state, ...changes }, proved })
      expect(agrees).toBe(problems.length === 0)
      return problems
    }
    expect(problemsOf({})).toEqual([])
    expect(problemsOf({ rows: 9 })).toEqual(['there are 9 invoices, not 10'])
    expect(problemsOf({ skipped: 1 })).toEqual(['1 invoices were not converted'])
    expect(problemsOf({ doubled: 2 })).toEqual(['2 invoices were converted more than once'])
    expect(problemsOf({ wrong: 1 })).toEqual(['1 invoices have other cents than their amount says'])
    expect(problemsOf({}, false)).toEqual(['verify does not prove that each row was processed exactly once'])
  })
})
