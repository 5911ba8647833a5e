import { spawn, spawnSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { text } from 'node:stream/consumers'
import { afterAll, describe, expect, inject, it } from 'vitest'
import { createClient } from '../../src/db/client.ts'
import { recordSeen } from '../../src/db/inbox-seen.ts'
import { sqlstateOf } from '../../src/db/sqlstate.ts'
import { newDatabases, openContext } from '../support/database.ts'

// The snippets of docs/outbox-from-any-language.md, run as they stand there.

const document = readFileSync(new URL('../../docs/outbox-from-any-language.md', import.meta.url), 'utf8')

/** Every snippet of a language below a heading, up to the next. */
function snippets(heading: string, language: string): string[] {
  const [, section = ''] = document.split(`\n${heading}\n`)
  const [own = ''] = section.split(/^#{2,3} /m)
  return [...own.matchAll(new RegExp(`^\`\`\`${language}\n(.*?)^\`\`\`$`, 'gms'))].map(
    ([, code = '']) => code,
  )
}

const answers = (command: string, ...args: string[]) => spawnSync(command, args).status === 0
const leftOut = (missing: string) => {
  if (process.env.CI === 'true') throw new Error(`${missing}; with CI=true nothing may be left out`)
  console.warn(`\n*** ${missing} ***\n`)
}
const hasPsql = answers('psql', '--version')
if (!hasPsql)
  leftOut(
    'no psql on the PATH: the snippets for psql are left out (Debian: apt-get install postgresql-client)',
  )
// A Python of one's own, ahead on the PATH, does not have what the system's packages bring.
const interpreter = ['python3', '/usr/bin/python3'].find((path) => answers(path, '-c', 'import psycopg'))
if (interpreter === undefined)
  leftOut(
    'no python3 with psycopg: the snippets for Python are left out (Debian: apt-get install python3-psycopg)',
  )

const ctx = await openContext(await newDatabases({ billing: 'west' }))
const { primary } = ctx.databases
await primary.sql`create table orders (id int primary key, total int not null)`
await primary.sql`create table stock (article text primary key, left_over int not null)`
await primary.sql`create table mails (event_id text primary key)`

/** A login on the cluster of the primary, with the rights on the tables of business and what the document grants. */
async function newLogin(nameInDocument: string, [grants = '']: string[]): Promise<string> {
  const name = `test_${randomBytes(6).toString('hex')}`
  const owner = createClient(primary.url, { max: 1 })
  afterAll(async () => {
    await owner.unsafe(`drop owned by ${name}; drop role ${name}`)
    await owner.end()
  })
  await owner.unsafe(`create role ${name} login password '${name}'`)
  await owner.unsafe(`grant select, insert, update on orders, stock, mails to ${name}`)
  expect(grants).toContain(`to ${nameInDocument};`)
  await owner.unsafe(grants.replaceAll(`to ${nameInDocument};`, `to ${name};`))
  const url = new URL(primary.url)
  url.username = name
  url.password = name
  return url.href
}
const shop = await newLogin('shop', snippets('### Rights', 'sql'))
const mailer = await newLogin('mailer', snippets('## Consuming once', 'sql').slice(-1))

/** What a program answers to this input; it has to succeed. */
async function run(command: string, args: string[], input: string, env = {}): Promise<string> {
  const child = spawn(command, args, { env: { ...process.env, ...env }, stdio: ['pipe', 'pipe', 'pipe'] })
  child.stdin.end(input)
  const [out, errors, [code]] = await Promise.all([
    text(child.stdout),
    text(child.stderr),
    once(child, 'close'),
  ])
  expect({ code: code as unknown, errors }).toEqual({ code: 0, errors: '' })
  return out.trim()
}
const psql = (url: string, input: string, ...args: string[]) =>
  run('psql', ['--no-psqlrc', '--quiet', '--tuples-only', '--no-align', ...args, url], input)
const python = (url: string, input: string) =>
  run(interpreter ?? 'python3', ['-'], input, { DATABASE_URL: url })

const published = (subject: string) =>
  primary.sql<{ event_id: string; event: object; slot: number; xid: string }[]>`
    select event_id, type, partitionkey, event::jsonb as event, slot, xid::text as xid from holdfast.outbox
    where partitionkey = ${subject}`

describe.runIf(hasPsql)('psql', () => {
  it('publishes in the transaction that changes the tables, with no more rights than the document grants', async () => {
    await primary.sql`insert into stock values ('lamp', 7)`
    // A login that may not read where new rows go would put them into the first slot.
    await primary.sql`select setval('holdfast.outbox_slot', 3)`
    const [snippet = ''] = snippets('### psql', 'sql')
    const [taken, printed] = (await psql(shop, snippet)).split('\n')
    const [order, ...others] = await published('order-42')
    expect(others).toEqual([])
    expect(order).toMatchObject({
      event_id: printed,
      type: 'order.placed',
      partitionkey: 'order-42',
      event: {
        id: printed,
        source: '/holdfast',
        type: 'order.placed',
        subject: 'order-42',
        data: { orderId: 42, total: 990 },
        tenant: 'acme',
      },
      slot: 3,
    })
    const { xid } = order as { xid: string }
    expect(await published('lamp')).toMatchObject([
      { event_id: taken, xid, event: { id: taken, subject: 'lamp', data: { pieces: 1 } } },
    ])
    expect(await primary.sql`select total, xmin::text as xid from orders where id = 42`).toEqual([
      { total: 990, xid },
    ])
    expect(await primary.sql`select left_over from stock`).toEqual([{ left_over: 6 }])
  })

  it('publishes nothing when the transaction is rolled back', async () => {
    const [snippet = ''] = snippets('### psql', 'sql')
    const undone = snippet.replaceAll('42', '77').replace('commit;', 'rollback;')
    await psql(shop, undone)
    expect(await published('order-77')).toEqual([])
    expect(await primary.sql`select 1 from orders where id = 77`).toEqual([])
  })

  it('consumes once, and `once` of Node knows', async () => {
    const [insert = '', together = ''] = snippets('## Consuming once', 'sql')
    expect(await psql(mailer, insert)).toBe('t')
    expect(await psql(mailer, insert)).toBe('')
    const known = /'([0-9a-f-]{36})'/.exec(insert)?.[1] ?? ''
    expect(await primary.transaction((tx) => recordSeen(tx, 'mailer', known))).toBe(false)
    for (let delivery = 0; delivery < 2; delivery++)
      await psql(mailer, together, '--set=ON_ERROR_STOP=1', '--set=event_id=by-psql')
    expect(await primary.sql`select event_id from mails where event_id = 'by-psql'`).toHaveLength(1)
  })
})

describe.runIf(interpreter !== undefined)('Python', () => {
  it('publishes in the transaction that changes the tables', async () => {
    const [snippet = ''] = snippets('### Python (psycopg 3)', 'python')
    const printed = await python(shop, snippet)
    const events = await published('order-43')
    expect(events).toMatchObject([
      {
        event_id: printed,
        type: 'order.placed',
        event: { data: { orderId: 43, total: 1250 }, tenant: 'acme' },
      },
    ])
    expect(await primary.sql`select xmin::text as xid from orders where id = 43`).toEqual([
      { xid: events[0]?.xid },
    ])
  })

  it('consumes once', async () => {
    const [snippet = ''] = snippets('## Consuming once', 'python')
    await python(
      mailer,
      `import os, psycopg\n${snippet}
with psycopg.connect(os.environ["DATABASE_URL"]) as conn:
    for delivery in range(2):
        handle(conn, "by-python")
`,
    )
    expect(await primary.sql`select event_id from mails where event_id = 'by-python'`).toHaveLength(1)
  })
})

describe('the errors that the document lists', () => {
  const listed = [...document.matchAll(/^\| `([0-9A-Z]{5})` \|/gm)].map(([, state]) => state)
  const call = `select holdfast.publish('t', 's', '{}')`
  const causes: Record<string, [statement: string, url?: string]> = {
    '3F000': [call, inject('postgres').east],
    '42883': [`select holdfast.publish('t', 's', '{}'::text)`, shop],
    '42501': [call, mailer],
    '22023': [`select holdfast.publish('', 's', '{}')`],
    '22P02': [`select holdfast.publish('t', 's', '{')`],
    '22P05': [`select holdfast.publish('t', 's', '"\\u0000"')`],
    '54000': [`select holdfast.publish('t', 's', to_jsonb(repeat('x', 1048577)))`],
    '25006': [`set transaction read only; ${call}`],
    '25P02': [call],
  }

  it('are all that are tried here', () => {
    expect(Object.keys(causes).toSorted()).toEqual(listed.map(String).toSorted())
  })

  it.each(Object.entries(causes))('%s', async (state, [statement, url = shop]) => {
    const sql = createClient(url, { max: 1 })
    try {
      await sql.unsafe('begin')
      if (state === '25P02') await sql.unsafe('select 1 / 0').catch(() => undefined)
      expect(await sql.unsafe(statement).catch(sqlstateOf)).toBe(state)
    } finally {
      await sql.end()
    }
  })

  it('42883 also where the database takes part but is not the primary', async () => {
    const { sql } = ctx.databases.get('billing')
    expect(await sql.unsafe(call).catch(sqlstateOf)).toBe('42883')
  })
})
