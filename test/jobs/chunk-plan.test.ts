import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { ChunkPlan } from '../../src/jobs/chunk-plan.ts'

/** Runs a plan over `rows` rows of which `poison` fail; returns what was processed, set aside, and how often it tried. */
function process(rows: number, size: number, poison: ReadonlySet<number>) {
  const plan = new ChunkPlan(size)
  const processed: number[] = []
  const setAside: number[] = []
  let tries = 0
  for (let at = 0; at < rows; ) {
    const { size: wanted, setAside: aside } = plan.next
    const chunk = Array.from({ length: Math.min(wanted, rows - at) }, (_, i) => at + i)
    tries++
    if (aside) {
      setAside.push(at++)
      plan.succeeded()
    } else if (chunk.some((row) => poison.has(row))) plan.failed(chunk.length)
    else {
      processed.push(...chunk)
      at += chunk.length
      plan.succeeded()
    }
    if (tries > 10 * rows + 10) throw new Error('it does not end')
  }
  return { processed, setAside, tries, narrowing: plan.narrowing }
}

describe('a chunk that fails', () => {
  it('is narrowed down to exactly the rows that fail, whatever they are', () => {
    const cases = fc.record({
      rows: fc.integer({ min: 1, max: 300 }),
      size: fc.integer({ min: 1, max: 64 }),
      poison: fc.uniqueArray(fc.integer({ min: 0, max: 299 }), { maxLength: 300 }),
    })
    fc.assert(
      fc.property(cases, ({ rows, size, poison }) => {
        const bad = poison.filter((row) => row < rows).toSorted((a, b) => a - b)
        const { processed, setAside, narrowing } = process(rows, size, new Set(bad))
        expect(setAside).toEqual(bad)
        expect(processed).toEqual(Array.from({ length: rows }, (_, i) => i).filter((i) => !bad.includes(i)))
        expect(narrowing).toBe(false)
      }),
      { numRuns: 300 },
    )
  })

  it('costs about two tries for each halving, and one where the other half passed', () => {
    expect(process(1_000, 1_000, new Set([0])).tries).toBeLessThanOrEqual(2 * 10 + 2)
    expect(process(1_000, 1_000, new Set([999])).tries).toBeLessThanOrEqual(2 * 10 + 2)
    expect(process(1_000, 1_000, new Set([500])).tries).toBeLessThanOrEqual(2 * 10 + 2)
  })

  it('is read whole again when somebody else moved the position', () => {
    const plan = new ChunkPlan(100)
    plan.failed(100)
    plan.failed(50)
    expect(plan.next.size).toBe(25)
    plan.reset()
    expect(plan.next).toEqual({ size: 100, setAside: false })
    expect(plan.narrowing).toBe(false)
  })
})
