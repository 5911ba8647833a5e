import { describe, expect, it } from 'vitest'
import { exampleLimitMs, importExample, runExample } from '../support/example.ts'

type Charge = { kind: string; key: string; subject: string; cents: number; undone: boolean }
type Facts = {
  placed: { id: string }[]
  initial: number
  state: { orders: { id: string; quantity: number; cents: number }[]; stock: number; prepared: number }
  ledger: Charge[]
}
type Result = { agrees: boolean; problems: string[] }

const charge = (changes: Partial<Charge> = {}): Charge => {
  return { kind: 'charges', key: 'k', subject: 'order-1', cents: 200, undone: false, ...changes }
}
const facts = (changes: Partial<Facts> = {}): Facts => ({
  placed: [{ id: 'order-1' }],
  initial: 10,
  state: { orders: [{ id: 'order-1', quantity: 2, cents: 200 }], stock: 8, prepared: 0 },
  ledger: [charge(), charge({ key: 'earlier', undone: true })],
  ...changes,
})

describe('examples/order-processing', () => {
  it(
    'charges what it ships once, whatever the service does and the worker suffers',
    async () => {
      const { code, last, stdout } = await runExample('order-processing/run.mjs')
      expect({ code, problems: last.problems }).toEqual({ code: 0, problems: [] })
      expect(last).toMatchObject({ agrees: true, stock: 11, left: 0 })
      const orders = last.orders as { id: string; confirmed: boolean; charged: number; refunded: number }[]
      expect(
        orders.map(({ id, confirmed, charged, refunded }) => [id, confirmed, charged - refunded]),
      ).toEqual([
        ['order-1', true, 1],
        ['order-2', true, 1],
        ['order-3', true, 1],
        ['order-4', true, 1],
        ['order-5', true, 1],
        ['order-6', false, 0],
        ['order-7', false, 0],
        ['order-8', true, 1],
      ])
      // Charged and then failed: taken back. Killed between charge and commit: gone on with, under the same key.
      expect(orders[3]?.refunded).toBeGreaterThan(0)
      expect(orders[7]?.refunded).toBe(0)
      expect(stdout).toContain('the worker was killed')
    },
    exampleLimitMs,
  )

  it('says where databases and ledger disagree', async () => {
    const { reconcile } = await importExample<{ reconcile: (facts: Facts) => Result }>(
      'order-processing/reconcile.mjs',
    )
    expect(reconcile(facts())).toMatchObject({ agrees: true, problems: [] })
    const problemsOf = (changes: Partial<Facts>) => {
      const { agrees, problems } = reconcile(facts(changes))
      expect(agrees).toBe(false)
      return problems
    }
    const { state } = facts()
    expect(problemsOf({ ledger: [charge(), charge({ key: 'again' })] })).toEqual([
      'order-1 is confirmed and charged 2 times',
    ])
    expect(problemsOf({ ledger: [charge({ undone: true })] })).toEqual([
      'order-1 is confirmed and charged 0 times',
    ])
    expect(problemsOf({ ledger: [charge({ cents: 1 })] })).toEqual([
      'order-1 is charged another amount than it has',
    ])
    expect(problemsOf({ state: { ...state, orders: [], stock: 10 } })).toEqual([
      'order-1 is not there, and charged',
    ])
    expect(problemsOf({ state: { ...state, stock: 7 } })).toEqual(['the stock is 7; 10 less the orders is 8'])
    expect(problemsOf({ state: { ...state, prepared: 1 } })).toEqual(['1 transactions are still prepared'])
  })
})
