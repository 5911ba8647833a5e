import { spawnSync } from 'node:child_process'
import { describe, expect, it } from 'vitest'
import { exampleLimitMs, importExample, outputInReadme, runExample } from '../support/example.ts'

type Shop = { orders: string[]; jobs: string[]; labels: string[]; taken: number; pieces: number }
type Facts = { told: { id: string; answer: string }[]; initial: number; shop: Shop; events: string[] }
type Result = { agrees: boolean; problems: string[] }

/** With CI=true nothing is left out: the example then fails by itself, and says what to install. */
const leftOut = process.env.CI !== 'true' && spawnSync('psql', ['--version']).status !== 0

const one = ['order-1']
const facts: Facts = {
  told: [{ id: 'order-1', answer: 'placed' }],
  initial: 10,
  shop: { orders: one, jobs: one, labels: one, taken: 2, pieces: 8 },
  events: one,
}

describe('examples/psql', () => {
  it.skipIf(leftOut)(
    'has order, job and event of what psql committed, and nothing of what failed or was killed',
    async () => {
      const { code, last, stdout } = await runExample('psql/run.mjs')
      expect({ code, problems: last.problems }).toEqual({ code: 0, problems: [] })
      const placed = { answer: 'placed', orders: 1, jobs: 1, labels: 1, events: 1 }
      const refused = { answer: 'refused', orders: 0, jobs: 0, labels: 0, events: 0 }
      expect(last).toMatchObject({
        agrees: true,
        stock: 5,
        orders: [
          { id: 'order-1', ...placed },
          { id: 'order-2', ...refused },
          { id: 'order-3', ...placed },
          { id: 'order-4', ...refused },
        ],
      })
      expect(outputInReadme('psql')).toContain('psql is killed')
      expect(stdout).toContain(outputInReadme('psql'))
    },
    exampleLimitMs,
  )

  it('says what to install where there is no psql', async () => {
    const { code, last } = await runExample('psql/run.mjs', { PATH: '/nowhere' })
    expect({ code, last }).toEqual({
      code: 1,
      last: {
        agrees: false,
        problems: [expect.stringMatching(/^psql is not there: install .*postgresql-client/)],
      },
    })
  })

  it('says what is there without the rest', async () => {
    const { reconcile } = await importExample<{ reconcile: (facts: Facts) => Result }>('psql/reconcile.mjs')
    const problemsOf = (changes: Partial<Facts>) => {
      const { agrees, problems } = reconcile({ ...facts, ...changes })
      expect(agrees).toBe(problems.length === 0)
      return problems
    }
    const { shop } = facts
    expect(problemsOf({})).toEqual([])
    expect(problemsOf({ events: [] })).toEqual(['order-1 was placed and has 0 events'])
    expect(problemsOf({ shop: { ...shop, jobs: [] } })).toEqual(['order-1 was placed and has 0 jobs'])
    expect(problemsOf({ shop: { ...shop, labels: ['order-1', 'order-9'] } })).toEqual([
      'nobody placed order-9, which has labels',
    ])
    expect(problemsOf({ shop: { ...shop, pieces: 7 } })).toEqual(['the stock is 7; 10 less the orders is 8'])
    expect(problemsOf({ told: [{ id: 'order-1', answer: 'refused' }] })).toHaveLength(4)
  })
})
