import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, inject, it } from 'vitest'
import { readDatabaseUrl } from '../../src/db/connection-url.ts'

const cert = join(inject('folder'), 'some-ca.pem')
const ca = 'what is in the file'
await writeFile(cert, ca)
const anyName = expect.any(Function) as () => undefined
const plain = 'postgres://u:p%3F@db.example:5433/shop'

describe('the URL of a database', () => {
  it.each([
    ['', '', false],
    ['?sslmode=disable', '', false],
    ['?ssl=false', '', false],
    ['?sslmode=require', '', { rejectUnauthorized: false }],
    ['?sslmode=prefer', '', { rejectUnauthorized: false }],
    ['?ssl=require', '', { rejectUnauthorized: false }],
    [`?sslmode=require&sslrootcert=${cert}`, '', { ca, checkServerIdentity: anyName }],
    [`?sslmode=verify-ca&sslrootcert=${cert}`, '', { ca, checkServerIdentity: anyName }],
    ['?sslmode=verify-full', '', {}],
    ['?ssl=true', '', {}],
    [`?sslrootcert=${encodeURIComponent(cert)}`, '', { ca }],
    [
      '?application_name=a%20b&sslmode=verify-full&options=-c%20x=1',
      '?application_name=a%20b&options=-c%20x=1',
      {},
    ],
    ['?application_name=shop', '?application_name=shop', false],
  ])('says with %j what libpq would make of it', (query, rest, ssl) => {
    expect(readDatabaseUrl(plain + query)).toEqual({ url: plain + rest, ssl })
  })

  it.each([
    ['127.0.0.1', '127.0.0.1'],
    ['127.0.0.1:5433', '127.0.0.1'],
    ['user@10.0.0.1:5433', '10.0.0.1'],
    ['u:p@[::1]:5433', '::1'],
  ])('names the address to verify for %s', (host, address) => {
    expect(readDatabaseUrl(`postgres://${host}/shop?sslmode=verify-full`).ssl).toEqual({ host: address })
    expect(readDatabaseUrl(`postgres://${host}/shop?sslmode=require`).ssl).toEqual({
      rejectUnauthorized: false,
    })
  })

  it('leaves a list of hosts as it is, and verifies names alone', () => {
    const [names, addresses] = ['postgres://a:1,b:2/shop', 'postgres://10.0.0.1:1,10.0.0.2:2/shop']
    expect(readDatabaseUrl(`${names}?sslmode=verify-full`)).toEqual({ url: names, ssl: {} })
    expect(() => readDatabaseUrl(`${addresses}?sslmode=verify-full`)).toThrow('several hosts')
    expect(readDatabaseUrl(`${addresses}?sslmode=require`).url).toBe(addresses)
  })

  it.each([
    ['sslmode=encrypt', 'sslmode is one of disable'],
    ['sslmode=verify-ca', 'needs sslrootcert'],
    ['sslrootcert=/nowhere/ca.pem', 'ENOENT'],
  ])('is refused with %s', (query, why) => {
    expect(() => readDatabaseUrl(`${plain}?${query}`)).toThrow(why)
  })
})
