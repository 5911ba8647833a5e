import { mkdtemp, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import postgres from 'postgres'
import { afterAll, beforeAll, describe, expect, inject, it, onTestFinished, vi } from 'vitest'
import { createDatabase } from '../../src/db/create-database.ts'
import { type EmbeddedServer, startEmbedded } from '../../src/db/embedded/server.ts'
import { createHoldfast, DatabaseUnreachableError, defineJob, InvalidConfigError } from '../../src/index.ts'
import { type Certificate, createCertificate, openssl } from '../support/certificate.ts'

process.env.LOG_LEVEL = 'silent'

/** The server writes its files itself, as the account that it runs under. */
async function encrypt({ url }: EmbeddedServer, { cert, key }: Certificate): Promise<void> {
  const sql = postgres(url, { max: 1 })
  try {
    for (const [name, file] of [
      ['server.crt', cert],
      ['server.key', key],
    ] as const) {
      await sql.unsafe('create temp table lines (n int generated always as identity, line text)')
      for (const line of (await readFile(file, 'utf8')).trimEnd().split('\n'))
        await sql`insert into lines (line) values (${line})`
      await sql.unsafe(`copy (select line from lines order by n) to program 'umask 077; cat > ${name}'`)
      await sql.unsafe('drop table lines')
    }
    await sql.unsafe('alter system set ssl = on')
    await sql.unsafe('select pg_reload_conf()')
    await vi.waitUntil(async () => (await sql`show ssl`)[0]?.ssl === 'on', { timeout: 60_000 })
  } finally {
    await sql.end()
  }
}

const greet = defineJob({ name: 'greet', stage: () => 'hello' })

describe.runIf(openssl)('a database over TLS', () => {
  let server: EmbeddedServer
  let plain: string
  let ca: string

  /** Its certificate is for localhost, and for no address. */
  beforeAll(async () => {
    const certificate = await createCertificate()
    ca = certificate.cert
    server = await startEmbedded({ dir: await mkdtemp(join(inject('folder'), 'tls-')) })
    await encrypt(server, certificate)
    plain = await createDatabase(server.url, 'shop')
  })
  afterAll(() => server.release())

  function urlOf(host: 'localhost' | '127.0.0.1', query: string): string {
    const url = new URL(plain)
    url.hostname = host
    url.search = query.replace('CA', ca)
    return url.href
  }

  async function encryptedConnections(): Promise<(boolean | null)[]> {
    const sql = postgres(plain, { max: 1 })
    try {
      const rows = await sql<{ ssl: boolean | null }[]>`
        select distinct ssl from pg_stat_ssl join pg_stat_activity using (pid)
        where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'`
      return rows.map(({ ssl }) => ssl)
    } finally {
      await sql.end()
    }
  }

  it.each([
    ['localhost', 'sslmode=verify-full&sslrootcert=CA'],
    ['127.0.0.1', 'sslmode=verify-ca&sslrootcert=CA'],
    ['127.0.0.1', 'sslmode=require'],
    ['localhost', 'sslmode=require&sslnegotiation=direct'],
    ['localhost', 'sslmode=require&options=-c%20statement_timeout=60000'],
  ] as const)('is worked on at %s with %s, by both drivers', async (host, query) => {
    const hf = await createHoldfast({
      databases: { primary: urlOf(host, query) },
      jobs: [greet],
      migrate: true,
    })
    onTestFinished(() => hf.close())
    await hf.start()
    expect(await hf.jobs.wait(await hf.enqueue(greet, null))).toMatchObject({ status: 'completed' })
    expect(await encryptedConnections()).toEqual([true])
  })

  it.each([
    ['localhost', 'sslmode=verify-full', 'self-signed'],
    // postgres.js alone would hold the certificate against "localhost", which it is for.
    ['127.0.0.1', 'sslmode=verify-full&sslrootcert=CA', "127.0.0.1 is not in the cert's list"],
  ] as const)('is not worked on at %s with %s', async (host, query, why) => {
    for (const migrate of [true, false]) {
      const opened = createHoldfast({ databases: { primary: urlOf(host, query) }, jobs: [greet], migrate })
      const error = await opened.catch((e: unknown) => e)
      expect(error).toBeInstanceOf(DatabaseUnreachableError)
      expect((error as Error).message).toContain(why)
      expect((error as Error).message).toContain('sslrootcert')
    }
  })

  it('says which URL has wrong parameters', async () => {
    const opened = createHoldfast({ databases: { primary: urlOf('localhost', 'sslmode=verify-ca') } })
    const error = await opened.catch((e: unknown) => e)
    expect(error).toBeInstanceOf(InvalidConfigError)
    expect((error as InvalidConfigError).problems).toEqual([
      expect.stringMatching(/^config\.databases\.primary: .*needs sslrootcert/),
    ])
  })
})

describe('a server without TLS', () => {
  it('is not worked on where the URL wants it', async () => {
    const url = new URL(inject('postgres').east)
    url.searchParams.set('sslmode', 'require')
    const opened = createHoldfast({ databases: { primary: url.href } })
    await expect(opened).rejects.toThrow(DatabaseUnreachableError)
  })
})
