import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { InvalidNameError } from '../../src/db/errors.ts'
import {
  checkTransactionName,
  formatGid,
  gidPrefix,
  nameInGid,
  newAttempt,
  newOwnerId,
  ownerOf,
  parseGid,
  participantInGid,
  siblingGid,
  transactionName,
} from '../../src/db/transaction-name.ts'

const first = 'abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789'
const name = fc
  .tuple(
    fc.constantFrom(...first),
    fc.array(fc.constantFrom(...`${first}_.:-`), { maxLength: 127 }).map((chars) => chars.join('')),
  )
  .map(([head, tail]) => head + tail)
const participant = fc.stringMatching(/^[a-z][a-z0-9_-]{0,62}$/)
const policy = fc.constantFrom('commit-forward' as const, 'presumed-abort' as const)

describe('checkTransactionName', () => {
  it.each([
    ['', 'empty'],
    ['a'.repeat(129), 'at most 128 bytes'],
    ["o'brien", 'transactionName'],
    ['a;drop table x', 'transactionName'],
    ['jane@example.com', 'transactionName'],
    ['ünïcode', 'transactionName'],
    ['order 1', 'transactionName'],
    ['a/b', 'transactionName'],
    ['_a', 'starts with a letter or digit'],
    ['a\n', 'transactionName'],
  ])('refuses %j and says what to do', (bad, advice) => {
    expect(() => checkTransactionName(bad)).toThrow(InvalidNameError)
    expect(() => checkTransactionName(bad)).toThrow(advice)
  })

  it('refuses what is not a string', () => {
    expect(() => checkTransactionName(7)).toThrow(InvalidNameError)
  })

  it('takes every allowed name', () => {
    fc.assert(
      fc.property(name, (n) => {
        expect(() => checkTransactionName(n)).not.toThrow()
      }),
    )
  })
})

describe('gid', () => {
  it('carries its parts, stays below 200 bytes and is our own by exact prefix', () => {
    fc.assert(
      fc.property(name, participant, policy, (n, p, pol) => {
        const installation = newOwnerId()
        const owner = newOwnerId()
        const attempt = newAttempt(owner)
        const gid = formatGid({ installation, policy: pol, participant: p, attempt, name: n })
        expect(Buffer.byteLength(gid)).toBeLessThan(200)
        expect(gid.startsWith(gidPrefix(installation))).toBe(true)
        expect(gid).not.toMatch(/['"\\\s]/)
        const expected = {
          installation,
          policy: pol,
          participant: participantInGid(p),
          attempt,
          name: nameInGid(n),
        }
        expect(parseGid(gid)).toEqual(expected)
        expect(ownerOf(attempt)).toBe(owner)
        expect(siblingGid(expected, p)).toBe(gid)
      }),
    )
  })

  it('hashes over-long parts, so that names which differ only at the end stay apart', () => {
    const attempt = newAttempt(newOwnerId())
    const make = (n: string) =>
      formatGid({
        installation: newOwnerId(),
        policy: 'presumed-abort',
        participant: 'primary',
        attempt,
        name: n,
      })
    const long = 'x'.repeat(127)
    expect(nameInGid(`${long}1`)).not.toBe(nameInGid(`${long}2`))
    expect(parseGid(make(`${long}1`))?.name).toMatch(/^~[0-9a-f]{64}$/)
  })

  it.each([
    '',
    'hf1',
    'hf2/0123456789abcdef/a/primary/0/x',
    "hf1/0123456789abcdef/a/primary/x'; drop/x",
    'other',
  ])('takes %j for foreign', (foreign) => {
    expect(parseGid(foreign)).toBeUndefined()
  })
})

describe('transactionName', () => {
  it('hides the entity, is the same each time, and is a valid name', () => {
    const made = transactionName('signup', "jane o'brien <jane@example.com>")
    expect(made).toBe(transactionName('signup', "jane o'brien <jane@example.com>"))
    expect(made).not.toContain('jane')
    expect(made).not.toBe(transactionName('signup', 'somebody else'))
    checkTransactionName(made)
  })
})
