import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { InvalidPayloadError } from '../../src/db/errors.ts'
import { canonicalJson, encodeJson, type Json } from '../../src/db/json.ts'

const cyclic: Record<string, unknown> = {}
cyclic.self = cyclic

describe('encodeJson', () => {
  it.each([
    ['undefined', undefined],
    ['a function', { f: () => 1 }],
    ['a symbol', { s: Symbol('x') }],
    ['a bigint', { n: 1n }],
    ['NaN', { n: Number.NaN }],
    ['Infinity', [Number.POSITIVE_INFINITY]],
    ['a Map', { m: new Map() }],
    ['a class instance', { e: new Error('x') }],
    ['a cycle', cyclic],
    ['undefined in an array', [undefined]],
    ['U+0000', { s: 'a\u0000b' }],
    ['U+0000 in a key', { 'a\u0000b': 1 }],
    ['a lone surrogate', '\ud800'],
  ])('refuses %s, naming the place', (_what, value) => {
    expect(() => encodeJson(value, 'event.data')).toThrow(InvalidPayloadError)
    expect(() => encodeJson(value, 'event.data')).toThrow(/^event\.data/)
  })

  it('takes what JSON can carry, and dates as text', () => {
    fc.assert(
      fc.property(fc.json(), (text) => {
        const value: unknown = JSON.parse(text)
        if (text.includes(String.raw`\u0000`)) return
        try {
          expect(JSON.parse(encodeJson(value, 'x'))).toEqual(value)
        } catch (error) {
          expect(error).toBeInstanceOf(InvalidPayloadError)
          expect((error as Error).message).toMatch(/surrogate|U\+0000/)
        }
      }),
    )
    expect(encodeJson({ at: new Date(0), gone: undefined }, 'x')).toBe('{"at":"1970-01-01T00:00:00.000Z"}')
  })
})

describe('canonicalJson', () => {
  it('sorts keys by their UTF-16 code units, at every depth, and writes values as JavaScript does (RFC 8785)', () => {
    const value = {
      '\u20ac': 1,
      '\r': 2,
      '\u{1f600}': 3,
      '\ufb33': 4,
      '10': 5,
      '9': [{ b: 1e21, a: 1.0 }],
      '': 1e-7,
    }
    expect(canonicalJson(value)).toBe(
      '{"":1e-7,"\\r":2,"10":5,"9":[{"a":1,"b":1e+21}],"\u20ac":1,"\u{1f600}":3,"\ufb33":4}',
    )
  })

  it('is one text for equal values, and reads back as the value', () => {
    fc.assert(
      fc.property(fc.jsonValue(), (value) => {
        const json = JSON.parse(JSON.stringify(value)) as Json
        expect(JSON.parse(canonicalJson(json))).toEqual(json)
        expect(canonicalJson(reversed(json))).toBe(canonicalJson(json))
      }),
    )
  })
})

/** With the keys of its objects the other way round. */
function reversed(value: Json): Json {
  if (typeof value !== 'object' || value === null) return value
  if (Array.isArray(value)) return value.map((entry: Json) => reversed(entry))
  const entries = Object.entries(value as Record<string, Json>).toReversed()
  return Object.fromEntries(entries.map(([key, entry]) => [key, reversed(entry)]))
}
