import { generateKeyPairSync } from 'node:crypto'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, inject, it, vi } from 'vitest'
import { createClient } from '../../src/db/client.ts'
import { readDatabaseUrl } from '../../src/db/connection-url.ts'

const file = (name: string) => join(inject('folder'), `connection-url-${name}.pem`)
const pemOf = (key: { export(options: { type: 'pkcs8'; format: 'pem' }): string | Buffer }) =>
  String(key.export({ type: 'pkcs8', format: 'pem' }))
const key = pemOf(generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey)
// OpenSSL reads no certificate where a file has none, and takes that for an empty list.
await writeFile(file('key'), key)
await writeFile(file('empty'), '')
const anyName = expect.any(Function) as () => undefined
const ca = file('key')
const plain = 'postgres://u:p%3F@db.example:5433/shop'

beforeEach(() => {
  for (const name of Object.keys(process.env)) if (/^PG(SSL|HOST)/.test(name)) vi.stubEnv(name, undefined)
})
afterEach(() => vi.unstubAllEnvs())

describe('the URL of a database', () => {
  it.each([
    ['', '', false],
    ['?sslmode=disable', '', false],
    ['?sslmode=disable&sslrootcert=/nowhere', '', false],
    ['?ssl=false', '', false],
    ['?sslmode=require', '', { rejectUnauthorized: false }],
    ['?sslmode=prefer', '', { rejectUnauthorized: false }],
    ['?ssl=require', '', { rejectUnauthorized: false }],
    ['?sslmode=disable&sslmode=require', '', { rejectUnauthorized: false }],
    [`?sslmode=require&sslrootcert=${ca}`, '', { ca: key, checkServerIdentity: anyName }],
    [`?sslmode=verify-ca&sslrootcert=${ca}`, '', { ca: key, checkServerIdentity: anyName }],
    ['?sslmode=verify-full', '', {}],
    ['?sslmode=require&sslrootcert=system', '', {}],
    ['?ssl=true', '', {}],
    [`?sslrootcert=${encodeURIComponent(ca)}`, '', { ca: key }],
    ['?sslmode=require&sslpassword=x', '', { rejectUnauthorized: false, passphrase: 'x' }],
    ['?a=b%20c&sslmode=verify-full&options=-c%20x=1', '?a=b%20c&options=-c%20x=1', {}],
    ['?application_name=who?&sslmode=verify-full', '?application_name=who?', {}],
    ['?application_name=shop', '?application_name=shop', false],
  ])('says with %j what libpq would make of it', (query, rest, ssl) => {
    expect(readDatabaseUrl(plain + query)).toEqual({ url: plain + rest, ssl })
  })

  it('leaves to the environment what it does not say', () => {
    vi.stubEnv('PGSSLMODE', 'require')
    expect(readDatabaseUrl(plain).ssl).toEqual({ rejectUnauthorized: false })
    expect(readDatabaseUrl(`${plain}?sslmode=verify-full`).ssl).toEqual({})
    expect(readDatabaseUrl(`${plain}?sslmode=disable`).ssl).toBe(false)
    vi.stubEnv('PGSSLNEGOTIATION', 'direct')
    expect(readDatabaseUrl(`${plain}?sslmode=disable`)).toEqual({ url: plain, ssl: false })
    expect(readDatabaseUrl(plain).sslnegotiation).toBe('direct')
    vi.stubEnv('PGSSLROOTCERT', ca)
    expect(readDatabaseUrl(plain).ssl).toEqual({ ca: key, checkServerIdentity: anyName })
  })

  it.each(['127.0.0.1', '127.0.0.1:5433', 'user@127.0.0.1:5433', 'u:p@ss@127.0.0.1:5433'])(
    'names the address to verify for %s',
    (host) => {
      const url = `postgres://${host}/shop`
      expect(readDatabaseUrl(`${url}?sslmode=verify-full`).ssl).toEqual({ host: '127.0.0.1' })
      expect(readDatabaseUrl(`${url}?sslmode=require`).ssl).toEqual({ rejectUnauthorized: false })
    },
  )

  it('may end in a line break', () => {
    expect(readDatabaseUrl(`${plain}?sslmode=require\n`)).toEqual({
      url: plain,
      ssl: { rejectUnauthorized: false },
    })
  })

  it('names the address that the environment gives', () => {
    vi.stubEnv('PGHOST', '10.0.0.7')
    expect(readDatabaseUrl('postgres:///shop?sslmode=verify-full').ssl).toEqual({ host: '10.0.0.7' })
  })

  it('leaves a list of hosts as it is, and verifies names alone', () => {
    const [names, addresses] = ['postgres://a:1,b:2/shop', 'postgres://10.0.0.1:1,10.0.0.2:2/shop']
    expect(readDatabaseUrl(`${names}?sslmode=verify-full`)).toEqual({ url: names, ssl: {} })
    expect(() => readDatabaseUrl(`${addresses}?sslmode=verify-full`)).toThrow('several hosts')
    expect(readDatabaseUrl(`${addresses}?sslmode=require`).url).toBe(addresses)
  })

  it.each([
    ['postgres://u:p@[::1]/shop', ['::1'], [5432]],
    ['postgres://u:p@[fd00::5]:5433/shop?application_name=x', ['fd00::5'], [5433]],
    ['postgres://[::1]:1,b,10.0.0.1:3/shop', ['::1', 'b', '10.0.0.1'], [1, 5432, 3]],
  ])('connects to an IPv6 address: %s', async (url, host, port) => {
    const sql = createClient(url)
    expect(sql.options).toMatchObject({ host, port, database: 'shop' })
    await sql.end()
  })

  it('connects to an IPv6 address at the port of the environment, and holds the certificate against it', () => {
    vi.stubEnv('PGPORT', '7')
    expect(createClient('postgres://[::1]/shop').options.port).toEqual([7])
    expect(readDatabaseUrl('postgres://[::1]/shop?sslmode=verify-full').ssl).toEqual({ host: '::1' })
  })

  it('negotiates directly for both drivers, or not at all', () => {
    expect(readDatabaseUrl(`${plain}?sslmode=require&sslnegotiation=direct`)).toEqual({
      url: plain,
      ssl: { rejectUnauthorized: false },
      sslnegotiation: 'direct',
    })
    expect(() => readDatabaseUrl(`${plain}?sslnegotiation=direct`)).toThrow('needs an sslmode that encrypts')
  })

  it.each([
    ['sslmode=encrypt', 'sslmode is one of disable'],
    ['sslmode=verify-ca', 'needs sslrootcert'],
    ['sslrootcert=/nowhere/ca.pem', 'sslrootcert: the file cannot be read (ENOENT)'],
    [`sslrootcert=${file('empty')}`, 'sslrootcert: the file has no PEM'],
    // Thrown here, and not where the driver connects and nobody catches it.
    [`sslmode=require&sslcert=${ca}&sslkey=${ca}`, 'do not fit together'],
  ])('is refused with %s', (query, why) => {
    expect(() => readDatabaseUrl(`${plain}?${query}`)).toThrow(why)
  })

  it.each(['postgres://u:s3cret#x@localhost/db', 'postgres://u:s3cret@localhost:99999/db'])(
    'is refused without its password where it is none: %s',
    (url) => {
      let thrown: unknown
      try {
        readDatabaseUrl(url)
      } catch (error) {
        thrown = error
      }
      expect(String(thrown)).toContain('percent-encode')
      expect(JSON.stringify(thrown, Object.getOwnPropertyNames(thrown))).not.toContain('s3cret')
    },
  )
})
