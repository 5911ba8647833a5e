import { describe, expect, it } from 'vitest'
import { isConnectionLoss, sqlstateOf } from '../../src/db/sqlstate.ts'

const withCode = (code: string) => Object.assign(new Error('x'), { code })

describe('sqlstateOf', () => {
  it.each(['23505', '0A000', 'HF001', 'P0001', 'XX000'])('finds %s, also in a cause', (code) => {
    expect(sqlstateOf(withCode(code))).toBe(code)
    expect(sqlstateOf(new Error('outer', { cause: withCode(code) }))).toBe(code)
  })

  it('takes no code of Node’s for one, which may be five capitals', () => {
    expect(sqlstateOf(withCode('EPIPE'))).toBeUndefined()
    expect(isConnectionLoss(withCode('EPIPE'))).toBe(true)
  })
})
