import { Client } from 'pg'
import postgres from 'postgres'
import { describe, expect, it } from 'vitest'
import { InvalidPayloadError } from '../../src/db/errors.ts'
import { appendEvents, type EventRunner, type NewEvent } from '../../src/db/outbox.ts'
import { newDatabases, openContext } from '../support/database.ts'

const ctx = await openContext(await newDatabases())
const { primary } = ctx.databases
const subjects = async () =>
  (
    await primary.sql<{ subject: string }[]>`
      select event::json ->> 'subject' as subject from holdfast.outbox order by id`
  ).map((r) => r.subject)

describe('appendEvents', () => {
  it('takes a Holdfast transaction, a postgres.js transaction and a node-postgres client, and keeps the order', async () => {
    const [id] = await primary.transaction((tx) =>
      appendEvents(tx, { type: 't', subject: 'holdfast', data: { a: [1] } }),
    )
    expect(id).toMatch(/^[0-9a-f]{8}-[0-9a-f]{4}-7/)
    const sql = postgres(primary.url, { max: 1 })
    await sql.begin((tx) =>
      appendEvents(tx, [
        { type: 't', subject: 'one' },
        { type: 't', subject: 'two' },
      ]),
    )
    await sql.end()
    const pg = new Client({ connectionString: primary.url })
    await pg.connect()
    await pg.query('begin')
    await appendEvents(pg, { type: 't', subject: 'pg' })
    await pg.query('commit')
    await pg.query('begin')
    await appendEvents(pg, { type: 't', subject: 'never' })
    await pg.query('rollback')
    await pg.end()
    expect(await subjects()).toEqual(['holdfast', 'one', 'two', 'pg'])
    const [row] = await primary.sql<{ event_id: string; partitionkey: string; event: string }[]>`
      select event_id, type, partitionkey, event from holdfast.outbox order by id limit 1`
    expect(row).toMatchObject({ event_id: id, type: 't', partitionkey: 'holdfast' })
    expect(JSON.parse(row?.event ?? '')).toEqual({
      specversion: '1.0',
      id,
      source: '/holdfast',
      type: 't',
      time: expect.stringMatching(/^\d{4}-.*Z$/),
      subject: 'holdfast',
      partitionkey: 'holdfast',
      datacontenttype: 'application/json',
      data: { a: [1] },
    })
  })

  it('stores the text of an event as it was written, which jsonb would order and change', async () => {
    const data = { z: 1e21, a: [1.5, -0.1, 'ü\u2028"\\'], aa: null, b: { 2: true, 1: {} } }
    const [id] = await primary.transaction((tx) =>
      appendEvents(tx, {
        type: 't',
        source: '/shop',
        subject: 'kept',
        partitionkey: 'key',
        time: new Date(0),
        headers: { tenant: 'a"b', traceparent: 'overridden' },
        traceparent: '00-1-2-03',
        data,
      }),
    )
    const [row] = await primary.sql<{ event: string; partitionkey: string }[]>`
      select event, partitionkey from holdfast.outbox where event_id = ${id ?? ''}`
    expect(row?.partitionkey).toBe('key')
    expect(row?.event).toBe(
      `{"specversion":"1.0","id":"${id}","source":"/shop","type":"t","time":"1970-01-01T00:00:00.000Z","subject":"kept","partitionkey":"key","tenant":"a\\"b","traceparent":"00-1-2-03","datacontenttype":"application/json","data":${JSON.stringify(data)}}`,
    )
  })

  it('gives each event an id of its own, in the order of their times', async () => {
    const ids = await primary.transaction((tx) =>
      appendEvents(
        tx,
        Array.from({ length: 1_000 }, () => ({ type: 't' })),
      ),
    )
    expect(new Set(ids).size).toBe(1_000)
    for (const id of ids)
      expect(id).toMatch(/^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/)
    const times = ids.map((id) => id.slice(0, 13))
    expect(times).toEqual(times.toSorted())
  })

  it('refuses an event of more than a mebibyte, and takes one of a byte less', async () => {
    const frame = `{"specversion":"1.0","id":"${crypto.randomUUID()}","source":"/t","type":"t","time":"2026-01-01T00:00:00Z","data":""}`
    const events = (bytes: number) => `[${frame.replace('""}', `"${'x'.repeat(bytes - frame.length)}"}`)}]`
    const appendText = (bytes: number) =>
      primary.sql`select holdfast.append_events(${events(bytes)}::text::json) as n`
    expect(await appendText(1_048_576)).toEqual([{ n: '1' }])
    await expect(appendText(1_048_577)).rejects.toMatchObject({
      code: '54000',
      message: expect.stringContaining('takes 1048577 bytes'),
    })
  })

  it.each(['U+0000', '"\\u0000"', '"\\ud800"'])('refuses text that no database takes: %s', async (text) => {
    const event = `{"specversion":"1.0","id":"${crypto.randomUUID()}","source":"/t","type":"t","time":"2026-01-01T00:00:00Z","data":${text}}`
    await expect(
      primary.sql`select holdfast.append_events(${`[${event}]`}::text::json)`,
    ).rejects.toMatchObject({ code: expect.stringMatching(/^22P0/) })
  })

  const bad: [what: string, event: unknown][] = [
    ['no type', { subject: 'a' }],
    ['an empty type', { type: '' }],
    ['data that is not JSON', { type: 't', data: { n: 1n } }],
    ['data with U+0000', { type: 't', data: 'a\u0000' }],
    ['an id that is no UUID', { type: 't', id: "x'; drop table" }],
    ['a header in capitals', { type: 't', headers: { Tenant: 'a' } }],
    ['a header with a hyphen', { type: 't', headers: { 'tenant-id': 'a' } }],
    ['a header that is an attribute', { type: 't', headers: { source: 'a' } }],
    ['a header that is an object', { type: 't', headers: { tenant: {} } }],
    ['a header that is null', { type: 't', headers: { tenant: null } }],
    ['a subject that is no text', { type: 't', subject: 5 }],
    ['a time that is none', { type: 't', time: new Date(Number.NaN) }],
    ['a time that RFC 3339 cannot say', { type: 't', time: new Date('+010000-01-01T00:00:00Z') }],
    ['null', null],
  ]
  it.each(bad)('refuses %s, and the transaction can go on', async (_what, event) => {
    await primary.transaction(async (tx) => {
      await expect(appendEvents(tx, event as NewEvent)).rejects.toThrow(InvalidPayloadError)
      await tx`select 1`
    })
  })

  it('refuses a connection pool: the events would not belong to a transaction', async () => {
    await expect(appendEvents(primary.sql as unknown as EventRunner, { type: 't' })).rejects.toThrow(
      'needs the transaction',
    )
    await expect(appendEvents({} as EventRunner, { type: 't' })).rejects.toThrow('needs the transaction')
  })
})

describe('holdfast.publish, for any language', () => {
  async function eventOf(id: string | undefined): Promise<unknown> {
    const [row] = await primary.sql<{ event: string }[]>`
      select event from holdfast.outbox where event_id = ${id ?? ''}`
    return JSON.parse(row?.event ?? '')
  }

  it('takes what needs quoting, nothing at all, and headers', async () => {
    const [full, bare] = await primary.sql<{ id: string }[]>`
      select holdfast.publish('t"ü', E'a\\nb\\\\c', '["x"]',
        '{"tenant": "a\\"b", "weight": 1.5, "vip": true}') as id
      union all select holdfast.publish('t', null, null, null)`
    expect(await eventOf(full?.id)).toMatchObject({
      type: 't"ü',
      subject: 'a\nb\\c',
      partitionkey: 'a\nb\\c',
      tenant: 'a"b',
      weight: 1.5,
      vip: true,
      data: ['x'],
    })
    expect(await eventOf(bare?.id)).toEqual({
      specversion: '1.0',
      id: bare?.id,
      source: '/holdfast',
      type: 't',
      time: expect.any(String),
      datacontenttype: 'application/json',
      data: null,
    })
  })

  it.each([
    '{"Tenant": "a"}',
    '{"tenant-id": "a"}',
    '{"": "a"}',
    '{"data": "a"}',
    '{"partitionkey": "a"}',
    '{"tenant": {}}',
    '{"tenant": null}',
    '["tenant"]',
    '"tenant"',
  ])('refuses the headers %s', async (headers) => {
    await expect(
      primary.sql`select holdfast.publish('t', 's', '{}', ${headers}::text::jsonb)`,
    ).rejects.toMatchObject({ code: '22023', message: expect.stringMatching(/header/) })
  })

  it('appends an event in the caller’s transaction', async () => {
    const [row] = await primary.sql<
      { id: string }[]
    >`select holdfast.publish('t', 'from-sql', '{"x": 1}') as id`
    expect(row?.id).toMatch(/^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab]/)
    expect(await eventOf(row?.id)).toEqual({
      specversion: '1.0',
      id: row?.id,
      source: '/holdfast',
      type: 't',
      time: expect.any(String),
      subject: 'from-sql',
      partitionkey: 'from-sql',
      datacontenttype: 'application/json',
      data: { x: 1 },
    })
    await expect(primary.sql`select holdfast.publish('', 's', '{}')`).rejects.toThrow('needs a type')
  })
})
