import { describe, expect, it } from 'vitest'
import { routeTo } from '../../src/jobs/routes.ts'

describe('routeTo', () => {
  it.each([
    ['order.placed', 'order.placed', true],
    ['order.*', 'order.placed', true],
    ['order.*', 'order.line.added', false],
    ['order.**', 'order.line.added', true],
    ['order.**', 'order', false],
    ['*.placed', 'order.placed', true],
    ['**', 'anything.at.all', true],
    ['order.pla*', 'order.placed', true],
    ['order.placed', 'orderXplaced', false],
    ['a+b.(c)', 'a+b.(c)', true],
  ])('%s against %s: %s', (type, event, wanted) => {
    expect(routeTo('stream', [{ type, to: ['stream'] }])(event)).toBe(wanted)
  })

  it('sends everything everywhere without routes, and nothing to a sink that no route names', () => {
    expect(routeTo('stream', undefined)('x')).toBe(true)
    expect(routeTo('stream', [{ type: '**', to: ['other'] }])('x')).toBe(false)
  })
})
