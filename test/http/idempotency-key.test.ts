import { describe, expect, it } from 'vitest'
import { parseKeyHeader } from '../../src/http/idempotency-key.ts'

describe('the field Idempotency-Key', () => {
  it.each([
    ['"8e03978e-40d5-43e8-bc93-6894a57f9324"', '8e03978e-40d5-43e8-bc93-6894a57f9324'],
    ['8e03978e-40d5-43e8-bc93-6894a57f9324', '8e03978e-40d5-43e8-bc93-6894a57f9324'],
    [' \t"k" ', 'k'],
    [String.raw`"a \"b\" \\ c"`, String.raw`a "b" \ c`],
    ['"k";v=1; *p ;q="a;\\"b"', 'k'],
    ['order/1+2=3:!~', 'order/1+2=3:!~'],
    ['k'.repeat(255), 'k'.repeat(255)],
  ])('%s is the key %s', (header, key) => {
    expect(parseKeyHeader(header)).toEqual({ key })
  })

  it.each([
    '',
    ' ',
    '""',
    '"k',
    'k"',
    '"a"b"',
    '"k" x',
    'a b',
    'one, two',
    '"one", "two"',
    String.raw`"\n"`,
    'a\\b',
    'é',
    '"é"',
    '"k";A=1',
    'k'.repeat(256),
  ])('%j is malformed', (header) => {
    expect(parseKeyHeader(header)).toBe('malformed')
  })

  it('is missing where it is not there', () => {
    expect(parseKeyHeader(undefined)).toBe('missing')
  })
})
