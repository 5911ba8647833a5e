import { describe, expect, it } from 'vitest'
import { exampleLimitMs, importExample, runExample } from '../support/example.ts'

type Call = { key: string; status: number | string; body: string }
type Facts = { calls: Call[]; orders: { id: number; item: string }[] }
type Result = { agrees: boolean; problems: string[] }

const created: Call = { key: 'key-1', status: 201, body: '{"id":1,"item":"teapot"}' }
const orders = [{ id: 1, item: 'teapot' }]

describe('examples/http-api', () => {
  it(
    'makes one order for each key, also for the one whose server was killed',
    async () => {
      const { code, last } = await runExample('http-api/run.mjs')
      expect({ code, problems: last.problems }).toEqual({ code: 0, problems: [] })
      expect(last).toMatchObject({ agrees: true, keys: 3, orders: 3 })
      const statuses = last.statuses as (number | string)[]
      expect(statuses.slice(0, 3)).toEqual([201, 201, 422])
      expect(statuses).toContain('no answer')
      expect(statuses.at(-1)).toBe(201)
    },
    exampleLimitMs,
  )

  it('says where responses and orders disagree', async () => {
    const { reconcile } = await importExample<{ reconcile: (facts: Facts) => Result }>(
      'http-api/reconcile.mjs',
    )
    const problemsOf = (facts: Partial<Facts>) => {
      const { agrees, problems } = reconcile({ calls: [created, created], orders, ...facts })
      expect(agrees).toBe(problems.length === 0)
      return problems
    }
    expect(problemsOf({})).toEqual([])
    expect(problemsOf({ orders: [...orders, { id: 2, item: 'teapot' }] })).toEqual(['2 orders for 1 keys'])
    expect(problemsOf({ orders: [{ id: 2, item: 'teapot' }] })).toEqual([
      'the order 1 that key-1 was told of is not there',
    ])
    expect(problemsOf({ calls: [{ ...created, status: 409 }] })).toEqual(['nobody got an order for key-1'])
    expect(problemsOf({ calls: [created, { ...created, body: '{"id":1,"item":"teapot" }' }] })).toEqual([
      'key-1 got 2 different responses',
    ])
  })
})
