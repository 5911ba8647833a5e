import { once } from 'node:events'
import { createServer, request as httpRequest, type RequestListener } from 'node:http'
import type { AddressInfo } from 'node:net'
import { getRequestListener } from '@hono/node-server'
import express from 'express'
import { fastify } from 'fastify'
import { Hono } from 'hono'
import { afterAll, describe, expect, it } from 'vitest'
import { deferred } from '../../src/db/deferred.ts'
import { NoConnectionsError } from '../../src/db/errors.ts'
import type { Tx } from '../../src/db/tx.ts'
import { idempotency as onExpress } from '../../src/express.ts'
import { idempotency as onFastify } from '../../src/fastify.ts'
import { idempotency as onHono } from '../../src/hono.ts'
import type { IdempotencyOptions, IdempotentContext } from '../../src/http/idempotent-request.ts'
import type { IdempotentResponse } from '../../src/http/response.ts'
import { type IdempotentOptions, idempotent } from '../../src/jobs/idempotent.ts'
import type { Holdfast } from '../../src/workers/holdfast.ts'
import { newDatabases, openContext } from '../support/database.ts'

const works = 4
const ctx = await openContext(await newDatabases(), { works, worksWaitMs: 300, idleTimeoutMs: 60_000 })
const { sql } = ctx.databases.primary
await sql`create table orders (id int generated always as identity, note text not null)`

const hf: Pick<Holdfast, 'idempotent'> = { idempotent: (options, work) => idempotent(ctx, options, work) }

type Order = { note: string; act?: string }

/** Held back by a test, by the order's note. */
const held = new Map<string, { working: () => void; goOn: Promise<void> }>()

/** One application for all frameworks: what it is told to do stands in the order. */
async function placeOrder(order: Order, { tx }: IdempotentContext): Promise<IdempotentResponse> {
  const id = await insert(tx, order.note)
  const hold = held.get(order.note)
  hold?.working()
  await hold?.goOn
  switch (order.act) {
    case 'bytes':
      return {
        status: 201,
        headers: { 'content-type': 'image/png' },
        body: Buffer.from([0, 255, 128, 10, 13, 0]),
      }
    case 'text':
      return { body: 'só \u0000 \u{1f600}' }
    case 'empty':
      return { status: 204, headers: { 'X-Id': String(id) } }
    case 'refuse':
      return { status: 409, json: { error: 'out of stock', id } }
    case 'fail':
      return { status: 503, headers: { 'retry-after': '7' }, json: { id } }
    case 'throw':
      throw new Error('out of order')
    case 'busy-within':
      throw new NoConnectionsError('of a call within the handler')
    case 'too-large':
      return { body: 'x'.repeat(2_000) }
    case 'bad-header':
      return { headers: { 'x-bad': 'a\nb' } }
    default:
      return {
        status: 201,
        headers: {
          Location: `/orders/${id}`,
          'set-cookie': ['a=1', 'b=2; Path=/'],
          connection: 'close',
          date: 'yesterday',
          'content-length': '1',
        },
        json: { id, note: order.note, nested: { z: 1, a: [1.5, null] } },
      }
  }
}

async function insert(tx: Tx, note: string): Promise<number> {
  const [row] = await tx<{ id: number }[]>`insert into orders (note) values (${note}) returning id`
  return row!.id
}

const countOrders = async (note: string) => (await sql`select from orders where note = ${note}`).length

type Options = Omit<IdempotencyOptions<never>, 'scope' | 'fingerprint'>
type Server = { url: string }

async function listen(listener: RequestListener): Promise<Server> {
  const server = createServer(listener)
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  afterAll(() => {
    server.closeAllConnections()
    server.close()
  })
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}` }
}

/** By name of the framework; each answers POST /orders, in the scope that the header x-account names. */
const servers: Record<string, (options: Options) => Promise<Server>> = {
  async fastify(options) {
    const app = fastify()
    const once = onFastify(hf, {
      ...options,
      scope: (request) => `fastify ${String(request.headers['x-account'])}`,
    })
    app.post<{ Body: Order }>(
      '/orders',
      once<{ Body: Order }>((request, context) => placeOrder(request.body, context)),
    )
    app.addContentTypeParser('application/octet-stream', { parseAs: 'buffer' }, (_request, body, done) =>
      done(null, body),
    )
    app.post(
      '/raw',
      once((request, { tx }) =>
        insert(tx, String((request.body as Buffer).length)).then(() => ({ body: 'ok' })),
      ),
    )
    await app.listen({ port: 0, host: '127.0.0.1' })
    afterAll(() => app.close())
    return { url: `http://127.0.0.1:${(app.server.address() as AddressInfo).port}` }
  },
  async express(options) {
    const app = express()
    const once = onExpress(hf, { ...options, scope: (req) => `express ${req.get('x-account')}` })
    app.post(
      '/orders',
      express.json(),
      once((req, context) => placeOrder(req.body as Order, context)),
    )
    app.post(
      '/raw',
      express.raw(),
      once((req, { tx }) => insert(tx, String((req.body as Buffer).length)).then(() => ({ body: 'ok' }))),
    )
    app.post(
      '/unparsed',
      once(() => ({ body: 'never' })),
    )
    return listen(app)
  },
  async hono(options) {
    const app = new Hono()
    const once = onHono(hf, { ...options, scope: (c) => `hono ${c.req.header('x-account')}` })
    app.post(
      '/orders',
      once(async (c, context) => placeOrder(await c.req.json<Order>(), context)),
    )
    app.post(
      '/raw',
      once(async (c, { tx }) => {
        await insert(tx, String((await c.req.arrayBuffer()).byteLength))
        return { body: 'ok' }
      }),
    )
    const answer = getRequestListener(app.fetch)
    return listen((request, response) => void answer(request, response))
  },
}

type Got = { status: number; headers: string[]; body: Buffer; header: (name: string) => string | undefined }

/** Over a connection of its own, with all headers as they came. */
async function post(
  { url }: Server,
  key: string | string[] | undefined,
  order: Order | Buffer,
  { path = '/orders', account = 'a' } = {},
): Promise<Got> {
  const body = Buffer.isBuffer(order) ? order : Buffer.from(JSON.stringify(order))
  const type = Buffer.isBuffer(order) ? 'application/octet-stream' : 'application/json'
  const headers: Record<string, string | string[]> = { 'content-type': type, 'x-account': account }
  if (key !== undefined) headers['idempotency-key'] = key
  const request = httpRequest(`${url}${path}`, { method: 'POST', headers, agent: false })
  request.end(body)
  const [response] = (await once(request, 'response')) as [import('node:http').IncomingMessage]
  const chunks: Buffer[] = []
  for await (const chunk of response) chunks.push(chunk as Buffer)
  const raw = response.rawHeaders
  const pairs = raw.flatMap((name, i) => (i % 2 === 0 ? [`${name.toLowerCase()}: ${raw[i + 1]}`] : []))
  return {
    status: response.statusCode ?? 0,
    // Of the response itself, and of the time.
    headers: pairs.filter((pair) => !pair.startsWith('date: ')),
    body: Buffer.concat(chunks),
    header: (name) => response.headers[name]?.toString(),
  }
}

const content = ({ status, headers, body }: Got) => ({ status, headers, body: body.toString('hex') })
const problemOf = ({ status, body, header }: Got) => ({
  status,
  type: header('content-type'),
  problem: JSON.parse(body.toString()) as unknown,
})

let serial = 0
const newNote = () => `note ${++serial}`

describe.each(Object.keys(servers))('idempotency on %s', async (framework) => {
  const documentation = 'https://developer.example.com/idempotency'
  const plain = await servers[framework]!({})
  const waiting = await servers[framework]!({ wait: 60_000 })
  const documented = await servers[framework]!({ documentation, maxResponseBytes: 1_000 })
  const optional = await servers[framework]!({ required: false })

  it('runs a handler once and repeats its response byte for byte', async () => {
    const order = { note: newNote() }
    const first = await post(plain, '"key-1"', order)
    expect(first.status).toBe(201)
    const id = (JSON.parse(first.body.toString()) as { id: number }).id
    expect(first.header('location')).toBe(`/orders/${id}`)
    expect(first.headers).toContain('content-type: application/json')
    expect(first.headers).toContain('set-cookie: b=2; Path=/')
    expect(first.header('date')).not.toBe('yesterday')
    expect(first.body.toString()).toBe(`{"id":${id},"note":"${order.note}","nested":{"z":1,"a":[1.5,null]}}`)
    // Quoted or bare, it is the same key.
    for (const key of ['"key-1"', 'key-1'])
      expect(content(await post(plain, key, order))).toEqual(content(first))
    expect(await countOrders(order.note)).toBe(1)
  })

  it.each(['bytes', 'text', 'empty', 'refuse'])('repeats a response of the kind %s', async (act) => {
    const order = { note: newNote(), act }
    const first = await post(plain, order.note.replace(' ', '-'), order)
    const second = await post(plain, order.note.replace(' ', '-'), order)
    expect(content(second)).toEqual(content(first))
    expect(await countOrders(order.note)).toBe(1)
    const expected = {
      bytes: [201, Buffer.from([0, 255, 128, 10, 13, 0]), 'image/png'],
      text: [200, Buffer.from('só \u0000 \u{1f600}'), 'text/plain; charset=utf-8'],
      empty: [204, Buffer.alloc(0), undefined],
      refuse: [409, first.body, 'application/json'],
    }[act]
    expect([first.status, first.body, first.header('content-type')]).toEqual(expected)
  })

  it('runs once for two requests at once: one is answered with 409, or waits for the other', async () => {
    const order = { note: newNote() }
    const working = deferred<void>()
    const goOn = deferred<void>()
    held.set(order.note, { working: () => working.resolve(), goOn: goOn.promise })
    const first = post(plain, '"at-once"', order)
    await working.promise
    const second = await post(plain, '"at-once"', order)
    expect(problemOf(second)).toEqual({
      status: 409,
      type: 'application/problem+json',
      problem: {
        type: 'about:blank',
        status: 409,
        title: 'A request is outstanding for this Idempotency-Key',
        detail: expect.any(String) as string,
      },
    })
    expect(Number(second.header('retry-after'))).toBeGreaterThanOrEqual(1)
    const third = post(waiting, '"at-once"', order)
    goOn.resolve()
    expect(content(await third)).toEqual(content(await first))
    expect(await countOrders(order.note)).toBe(1)
  })

  it('answers with 503 when all connections are busy for too long; the same request runs later', async () => {
    const goOn = deferred<void>()
    const busy = await Promise.all(
      Array.from({ length: works }, async () => {
        const order = { note: newNote() }
        const working = deferred<void>()
        held.set(order.note, { working: () => working.resolve(), goOn: goOn.promise })
        const answer = post(plain, `"${order.note.replace(' ', '-')}"`, order)
        await working.promise
        return { answer }
      }),
    )
    const order = { note: newNote() }
    const refused = await post(plain, '"busy"', order)
    expect(problemOf(refused)).toMatchObject({
      status: 503,
      type: 'application/problem+json',
      problem: { title: 'The service is busy', status: 503 },
    })
    expect(refused.header('retry-after')).toBe('1')
    expect(await countOrders(order.note)).toBe(0)
    goOn.resolve()
    for (const { answer } of busy) expect((await answer).status).toBe(201)
    expect((await post(plain, '"busy"', order)).status).toBe(201)
    expect(await countOrders(order.note)).toBe(1)
  })

  it('runs once for sixteen requests at once', async () => {
    const order = { note: newNote() }
    const all = await Promise.all(Array.from({ length: 16 }, () => post(waiting, '"many"', order)))
    for (const one of all) expect(content(one)).toEqual(content(all[0]!))
    expect(all[0]!.status).toBe(201)
    expect(await countOrders(order.note)).toBe(1)
  })

  it('answers a missing or malformed key with 400', async () => {
    const order = { note: newNote() }
    for (const [key, title] of [
      [undefined, 'Idempotency-Key is missing'],
      ['"open', 'Idempotency-Key is malformed'],
      [['one', 'two'], 'Idempotency-Key is malformed'],
      ['k'.repeat(256), 'Idempotency-Key is malformed'],
    ] as const) {
      const got = await post(documented, key as string, order)
      expect(problemOf(got)).toMatchObject({
        status: 400,
        type: 'application/problem+json',
        problem: { type: documentation, title, status: 400 },
      })
      expect(got.header('link')).toBe(`<${documentation}>; rel="describedby"; type="text/html"`)
    }
    expect(await countOrders(order.note)).toBe(0)
  })

  it('answers a key that belongs to another request with 422: other body, other path', async () => {
    const order = { note: newNote() }
    await post(plain, '"taken"', order)
    const others = [
      await post(plain, '"taken"', { note: 'other' }),
      await post(plain, '"taken"', order, { path: '/orders?x=1' }),
    ]
    for (const other of others) {
      expect(problemOf(other)).toMatchObject({
        status: 422,
        type: 'application/problem+json',
        problem: { title: 'Idempotency-Key is already used', status: 422 },
      })
    }
    expect(await countOrders('other')).toBe(0)
    expect(await countOrders(order.note)).toBe(1)
  })

  it('keeps the keys of accounts apart', async () => {
    const order = { note: newNote() }
    const [a, b] = [
      await post(plain, '"shared"', order),
      await post(plain, '"shared"', order, { account: 'b' }),
    ]
    expect(b.header('location')).not.toBe(a.header('location'))
    expect(await countOrders(order.note)).toBe(2)
  })

  it('does not store a status from 500 on, nor what the handler throws, and keeps nothing of the work', async () => {
    const failing = { note: newNote(), act: 'fail' }
    const first = await post(plain, '"failing"', failing)
    expect([first.status, first.header('retry-after')]).toEqual([503, '7'])
    expect((await post(plain, '"failing"', failing)).body).not.toEqual(first.body)
    const throwing = { note: newNote(), act: 'throw' }
    expect((await post(plain, '"throwing"', throwing)).status).toBe(500)
    expect((await post(plain, '"throwing"', throwing)).status).toBe(500)
    expect(
      await sql`select from holdfast.idempotency_keys where key in ('failing', 'throwing')`,
    ).toHaveLength(0)
    expect([await countOrders(failing.note), await countOrders(throwing.note)]).toEqual([0, 0])
  })

  it('does not say that nothing was done when the handler itself found no connection', async () => {
    const order = { note: newNote(), act: 'busy-within' }
    expect((await post(plain, '"busy-within"', order)).status).toBe(500)
    expect(await countOrders(order.note)).toBe(0)
  })

  it('commits nothing with a response that is too large or cannot be sent', async () => {
    for (const act of ['too-large', 'bad-header']) {
      const order = { note: newNote(), act }
      expect((await post(documented, `"${act}"`, order)).status).toBe(500)
      expect(await countOrders(order.note)).toBe(0)
    }
  })

  it('runs requests without a key each by itself, where none is required', async () => {
    const order = { note: newNote() }
    const [one, two] = [await post(optional, undefined, order), await post(optional, undefined, order)]
    expect([one.status, two.status]).toEqual([201, 201])
    expect(one.body).not.toEqual(two.body)
    expect(await countOrders(order.note)).toBe(2)
    await post(optional, '"given"', order)
    await post(optional, '"given"', order)
    expect(await countOrders(order.note)).toBe(3)
  })

  it('compares bodies of bytes', async () => {
    const raw = { path: '/raw' }
    const [a, b] = [Buffer.from([0, 1, 2]), Buffer.from([0, 1, 3])]
    expect((await post(plain, '"raw"', a, raw)).status).toBe(200)
    expect((await post(plain, '"raw"', b, raw)).status).toBe(422)
    expect((await post(plain, '"raw"', a, raw)).body.toString()).toBe('ok')
  })
})

describe('idempotency on express', () => {
  it('refuses a body that nobody parsed, which it could not compare', async () => {
    const server = await servers.express!({})
    const got = await post(server, '"k"', { note: 'x' }, { path: '/unparsed' })
    expect(got.status).toBe(500)
    expect(got.body.toString()).toContain('express.json()')
  })
})

describe('options', () => {
  it('reach the call', async () => {
    let seen: IdempotentOptions | undefined
    const spy: Pick<Holdfast, 'idempotent'> = {
      idempotent: (options, work) => {
        seen = options
        return idempotent(ctx, options, work)
      },
    }
    const app = new Hono()
    const once = onHono(spy, {
      scope: 'fixed',
      ttlMs: 5_000,
      wait: 10,
      maxResponseBytes: 500,
      fingerprint: async (c) => ({ note: (await c.req.json<Order>()).note }),
    })
    app.post(
      '/orders',
      once(() => ({ body: 'ok' })),
    )
    const ask = (order: Order) =>
      app.request('/orders', {
        method: 'POST',
        headers: { 'idempotency-key': 'k' },
        body: JSON.stringify(order),
      })
    expect((await ask({ note: 'n', act: 'a' })).status).toBe(200)
    expect(seen).toEqual({
      scope: 'fixed',
      key: 'k',
      fingerprint: { note: 'n' },
      ttlMs: 5_000,
      wait: 10,
      maxResponseBytes: 500,
    })
    expect((await ask({ note: 'n', act: 'b' })).status).toBe(200)
    expect((await ask({ note: 'm' })).status).toBe(422)
  })
})
