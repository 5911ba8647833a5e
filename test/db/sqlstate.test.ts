import { describe, expect, it } from 'vitest'
import { isConnectionLoss, isPassing, sqlstateOf } from '../../src/db/sqlstate.ts'

const withCode = (code: string) => Object.assign(new Error('x'), { code })

describe('sqlstateOf', () => {
  it.each(['23505', '0A000', 'HF001', 'P0001', 'XX000'])('finds %s, also in a cause', (code) => {
    expect(sqlstateOf(withCode(code))).toBe(code)
    expect(sqlstateOf(new Error('outer', { cause: withCode(code) }))).toBe(code)
  })

  it.each(['P1001', 'P2034', 'E2BIG', 'EPIPE'])('takes %s, which is another library’s, for none', (code) => {
    expect(sqlstateOf(withCode(code))).toBeUndefined()
  })

  it('takes any that a server gave, with its severity', () => {
    expect(sqlstateOf(Object.assign(withCode('MY001'), { severity: 'ERROR' }))).toBe('MY001')
  })

  it('takes no code of Node’s for one, which may be five capitals', () => {
    expect(sqlstateOf(withCode('EPIPE'))).toBeUndefined()
    expect(isConnectionLoss(withCode('EPIPE'))).toBe(true)
  })
})

describe('a lost connection', () => {
  it.each(['08006', '53300', '57P01', '57P03', '57P05', '25P03'])('is %s', (code) => {
    expect(isConnectionLoss(withCode(code))).toBe(true)
  })

  it.each(['53200', '57014', '25P04', '42P01'])('is not %s', (code) => {
    expect(isConnectionLoss(withCode(code))).toBe(false)
  })
})

it.each(['25P04', '57014', '53300', '40001'])('time may heal %s', (code) => {
  expect(isPassing(withCode(code))).toBe(true)
})
