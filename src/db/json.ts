import { InvalidPayloadError } from './errors.ts'

/** What JSON can carry, and therefore what a payload, a job's input or a staged value may be. */
export type Json = null | boolean | number | string | readonly Json[] | { readonly [key: string]: Json }

/**
 * JSON text that PostgreSQL's jsonb accepts and that reads back as the same value. Throws InvalidPayloadError, naming
 * the place, for what JSON.stringify would drop, change or reject in silence: undefined, functions, symbols, bigint,
 * NaN and infinities, Map, Set and other class instances, cycles, U+0000 and lone surrogates. Objects with toJSON
 * (dates) are taken as what it returns; undefined properties of objects are left out, as JSON.stringify does.
 */
export function encodeJson(value: unknown, what: string): string {
  check(value, what, [])
  return JSON.stringify(value)
}

/** The value as JSON carries it; refuses what encodeJson does. */
export function throughJson(value: unknown, what: string): Json {
  return JSON.parse(encodeJson(value, what)) as Json
}

/** One text for all that is equal as JSON (RFC 8785): keys in the order of their UTF-16 code units, no spaces. */
export function canonicalJson(value: Json): string {
  if (typeof value !== 'object' || value === null) return JSON.stringify(value)
  if (Array.isArray(value)) return `[${(value as readonly Json[]).map(canonicalJson).join(',')}]`
  const entries = Object.entries(value).toSorted(([one], [other]) => (one < other ? -1 : 1))
  return `{${entries.map(([key, entry]) => `${JSON.stringify(key)}:${canonicalJson(entry)}`).join(',')}}`
}

/** Of two values that came the same way: the order of an object's keys counts. */
export function sameJson(one: Json, other: Json): boolean {
  return JSON.stringify(one) === JSON.stringify(other)
}

function check(value: unknown, path: string, seen: object[]): void {
  switch (typeof value) {
    case 'boolean':
      return
    case 'string':
      return checkText(value, path)
    case 'number':
      if (!Number.isFinite(value)) refuse(path, `the number ${value}`, 'send null or a string')
      return
    case 'object':
      if (value !== null) checkObject(value, path, seen)
      return
    case 'bigint':
      return refuse(path, 'a bigint', 'send it as a string')
    default:
      return refuse(
        path,
        value === undefined ? 'undefined' : `a ${typeof value}`,
        'leave it out or send null',
      )
  }
}

function checkObject(value: object, path: string, seen: object[]): void {
  if (seen.includes(value)) refuse(path, 'a cycle', 'send ids instead of the objects themselves')
  if ('toJSON' in value && typeof value.toJSON === 'function')
    return check(value.toJSON(), path, [...seen, value])
  const inside = [...seen, value]
  if (Array.isArray(value)) {
    for (let i = 0; i < value.length; i++) check(value[i], `${path}[${i}]`, inside)
    return
  }
  const prototype: unknown = Object.getPrototypeOf(value)
  if (prototype !== Object.prototype && prototype !== null) {
    refuse(path, `an instance of ${value.constructor.name}`, 'send a plain object or array')
  }
  for (const [key, entry] of Object.entries(value)) {
    checkText(key, path)
    if (entry !== undefined) check(entry, `${path}.${key}`, inside)
  }
}

function checkText(text: string, path: string): void {
  if (text.includes('\u0000')) refuse(path, 'the character U+0000', 'PostgreSQL cannot store it; remove it')
  if (!text.isWellFormed()) refuse(path, 'a lone surrogate', 'make the string well-formed (toWellFormed)')
}

function refuse(path: string, found: string, advice: string): never {
  throw new InvalidPayloadError(`${path} is not JSON: found ${found}; ${advice}`)
}
