import { execFile } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { getEventListeners, once } from 'node:events'
import { cp, mkdtemp, rm } from 'node:fs/promises'
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { inspect, promisify } from 'node:util'
import { pino } from 'pino'
import { Webhook } from 'standardwebhooks'
import { afterAll, afterEach, beforeEach, describe, expect, inject, it, onTestFinished, vi } from 'vitest'
import { Databases } from '../../../src/db/databases.ts'
import { InvalidConfigError, SinkUnavailableError } from '../../../src/db/errors.ts'
import type { OutboxEvent } from '../../../src/db/outbox-event.ts'
import type { Clock } from '../../../src/jobs/clock.ts'
import { systemClock } from '../../../src/jobs/clock.ts'
import { publishMs } from '../../../src/jobs/page-run.ts'
import { waitsBehind } from '../../../src/jobs/sinks/publish-by-key.ts'
import { messageIdOf, type OpenSink, type Page, type Published } from '../../../src/jobs/sinks/sink.ts'
import { longestPageMs, type WebhookOptions, webhook } from '../../../src/jobs/sinks/webhook.ts'
import { numbered, pageOf } from '../../support/outbox-page.ts'

type Received = { key: string; n: number; request: IncomingMessage; body: string }
type Answering = (received: Received, response: ServerResponse) => void

const newSecret = () => `whsec_${randomBytes(32).toString('base64')}`
const ok: Answering = (_received, response) => response.writeHead(200).end('{"ok":true}')
const status =
  (code: number, headers: Record<string, string> = {}): Answering =>
  (_received, response) =>
    response.writeHead(code, headers).end('the reason of the receiver')

describe('webhook', () => {
  const secret = newSecret()
  const databases = new Databases({ primary: 'postgres://127.0.0.1:1/none' })
  let server: Server
  let url: string
  let answer: Answering
  let received: Received[]
  let connections: number

  // A server for each test: a connection that the test before left open is another one's.
  beforeEach(async () => {
    answer = ok
    received = []
    connections = 0
    server = createServer((request, response) => {
      let body = ''
      request.setEncoding('utf8')
      request.on('data', (chunk: string) => {
        body += chunk
      })
      request.on('end', () => {
        const { partitionkey, data } = JSON.parse(body) as { partitionkey: string; data: { n: number } }
        const one = { key: partitionkey, n: data.n, request, body }
        received.push(one)
        answer(one, response)
      })
    })
    server.on('connection', () => connections++)
    server.listen(0, '127.0.0.1')
    await once(server, 'listening')
    url = `http://127.0.0.1:${(server.address() as { port: number }).port}/in`
  })
  afterEach(async () => {
    server.closeAllConnections()
    server.close()
    await once(server, 'close')
  })
  afterAll(() => databases.end())

  const open = (options: Partial<WebhookOptions> = {}, clock: Clock = systemClock): Promise<OpenSink> =>
    webhook({ url, secret, ...options }).open({
      databases,
      installation: '0123456789abcdef',
      name: 'partner',
      log: pino({ level: 'silent' }),
      clock,
      worstRetryMs: 1_000,
    })
  const event = (id: number, key = 'k'): OutboxEvent =>
    numbered(id, {
      partitionkey: key,
      subject: key,
      data: { n: id, text: 'payload-ü' },
      traceparent: undefined,
    })
  const page = (events: OutboxEvent[], fields: Partial<Page> = {}): Page =>
    pageOf(events, { sink: 'partner', epoch: 7n, ...fields })
  const publish = async (
    events: OutboxEvent[],
    options: Partial<WebhookOptions> = {},
    clock?: Clock,
  ): Promise<Published> => {
    const sink = await open(options, clock)
    return sink.publish(page(events), new AbortController().signal)
  }
  const numbers = () => received.map(({ n }) => n)
  const unavailable = ({ stopped }: Published): SinkUnavailableError => {
    expect(stopped?.error).toBeInstanceOf(SinkUnavailableError)
    return stopped?.error as SinkUnavailableError
  }

  it('posts the CloudEvent, signed so that the library of Standard Webhooks verifies it', async () => {
    const one = event(1)
    const now = Date.now() - 60_000
    expect(
      await publish([one], { headers: { 'X-Tenant': 'eu' } }, { ...systemClock, now: () => now }),
    ).toEqual({
      rejected: [],
    })
    const [{ request, body } = expect.fail()] = received
    expect(request.method).toBe('POST')
    expect(request.headers).toMatchObject({
      'content-type': 'application/cloudevents+json',
      'webhook-id': one.eventId,
      'webhook-timestamp': String(Math.floor(now / 1000)),
      'x-tenant': 'eu',
    })
    const verified = new Webhook(secret).verify(body, request.headers as Record<string, string>)
    expect(verified).toMatchObject({ specversion: '1.0', id: one.eventId, data: { n: 1, text: 'payload-ü' } })
    expect(() => new Webhook(secret).verify(`${body} `, request.headers as Record<string, string>)).toThrow(
      'No matching signature',
    )
  })

  it('signs with both secrets of a rotation, and with no other', async () => {
    const next = newSecret()
    await publish([event(1)], { secret: [secret, next] })
    const [{ request, body } = expect.fail()] = received
    expect(request.headers['webhook-signature']).toMatch(/^v1,\S+ v1,\S+$/)
    for (const known of [secret, next]) {
      expect(
        new Webhook(known).verify(body, request.headers as Record<string, string>, { jsonParse: false }),
      ).toBe(undefined)
    }
    expect(() => new Webhook(newSecret()).verify(body, request.headers as Record<string, string>)).toThrow(
      'No matching signature',
    )
  })

  it('sends the same webhook-id on each try, and another one in a replay', async () => {
    const one = event(1)
    const sink = await open()
    const { signal } = new AbortController()
    await sink.publish(page([one]), signal)
    await sink.publish(page([one], { xid: 101n }), signal)
    await sink.publish(page([one], { replay: true }), signal)
    const replayed = messageIdOf({ replay: true, epoch: 7n }, one)
    expect(replayed).not.toBe(one.eventId)
    expect(received.map(({ request }) => request.headers['webhook-id'])).toEqual([
      one.eventId,
      one.eventId,
      replayed,
    ])
  })

  it('keeps the order of a key and has as many on their way as it may, also more than ten', async () => {
    const held: ServerResponse[] = []
    let most = 0
    answer = (_received, response) => {
      held.push(response)
      most = Math.max(most, held.length)
      // Answered last come, first served: the order must not come from the server.
      if (held.length === 12 || received.length > 36 - 12)
        for (const each of held.splice(0).toReversed()) each.end()
    }
    const keys = Array.from({ length: 12 }, (_, i) => `key ${i}`)
    const events = Array.from({ length: 36 }, (_, i) => event(i, keys[i % 12]))
    const warnings: Error[] = []
    const onWarning = (warning: Error) => warnings.push(warning)
    process.on('warning', onWarning)
    const sink = await open({ concurrency: 12 })
    const { signal } = new AbortController()
    expect(await sink.publish(page(events), signal)).toEqual({ rejected: [] })
    expect(getEventListeners(signal, 'abort')).toEqual([])
    process.off('warning', onWarning)
    expect(most).toBe(12)
    for (const [i, key] of keys.entries()) {
      expect(received.filter((one) => one.key === key).map(({ n }) => n)).toEqual([i, i + 12, i + 24])
    }
    expect(warnings).toEqual([])
  })

  it.each([
    [400, false],
    [409, false],
    [410, true],
    [413, true],
    [422, false],
  ])(
    'answered %d: rejects the event (permanent: %s), sends nothing more of its key, and all others',
    async (code, permanent) => {
      answer = (one, response) => (one.n === 2 ? status(code)(one, response) : ok(one, response))
      const events = [event(1, 'a'), event(2, 'a'), event(3, 'b'), event(4, 'a'), event(5, 'b')]
      const { rejected, stopped } = await publish(events)
      expect(stopped).toBeUndefined()
      expect(rejected).toEqual([
        {
          event: events[1],
          reason: `the webhook answered event ${events[1]!.eventId} with ${code}`,
          permanent,
        },
        { event: events[3], reason: waitsBehind },
      ])
      expect(numbers().toSorted((a, b) => a - b)).toEqual([1, 2, 3, 5])
    },
  )

  it.each([401, 403, 404, 408, 425, 429, 500, 502, 503])(
    'answered %d: is unavailable, says what it took, and sends nothing more',
    async (code) => {
      answer = (one, response) => (one.n === 2 ? status(code)(one, response) : ok(one, response))
      const events = [event(1), event(2), event(3)]
      const published = await publish(events)
      expect(published.rejected).toEqual([])
      expect(published.stopped?.taken).toEqual([events[0]])
      expect(unavailable(published).message).toBe(`the webhook of partner answered with ${code}`)
      expect(unavailable(published).retryAfterMs).toBeUndefined()
      expect(numbers()).toEqual([1, 2])
    },
  )

  const at = Date.parse('2026-05-01T12:00:00Z')
  it.each([
    ['30', 30_000],
    ['Fri, 01 May 2026 12:02:00 GMT', 120_000],
    ['Fri, 01 May 2026 11:00:00 GMT', 0],
    ['86400', 3_600_000],
    ['Fri, 01 May 2027 12:00:00 GMT', 3_600_000],
    ['soon', undefined],
    ['-5', undefined],
  ])('hands on Retry-After: %s', async (header, expected) => {
    answer = status(429, { 'retry-after': header })
    expect(unavailable(await publish([event(1)], {}, { ...systemClock, now: () => at })).retryAfterMs).toBe(
      expected,
    )
  })

  it('does not follow a redirect', async () => {
    answer = (one, response) =>
      one.request.url === '/in' ? status(307, { location: '/other' })(one, response) : ok(one, response)
    expect(unavailable(await publish([event(1)])).message).toBe(
      'the webhook of partner answered with 307; redirects are not followed, so give the sink the new URL',
    )
    expect(received.map(({ request }) => request.url)).toEqual(['/in'])
  })

  it('waits no longer than its time-out, and lets go of the connection', async () => {
    const gone = new Promise((resolve) => {
      answer = (_received, response) => response.on('close', resolve)
    })
    expect(unavailable(await publish([event(1)], { timeoutMs: 1_000 })).message).toBe(
      'the webhook of partner did not answer within 1000 ms',
    )
    await gone
  })

  it('stops with the relay', async () => {
    const relay = new AbortController()
    const gone = new Promise((resolve) => {
      answer = (_received, response) => {
        response.on('close', resolve)
        relay.abort()
      }
    })
    const sink = await open()
    const published = await sink.publish(page([event(1), event(2)]), relay.signal)
    expect(unavailable(published).message).toBe(
      'the webhook of partner was not waited for: the worker stops, or the page took too long',
    )
    await gone
    expect(numbers()).toEqual([1])
    expect(unavailable(await sink.publish(page([event(3)]), relay.signal))).toBeInstanceOf(
      SinkUnavailableError,
    )
    expect(numbers()).toEqual([1])
  })

  it('says what it took before the relay stops to listen, however slow the receiver is', async () => {
    expect(longestPageMs).toBeLessThan(publishMs)
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] })
    onTestFinished(() => {
      vi.useRealTimers()
    })
    answer = (one, response) => {
      if (one.n === 1) ok(one, response)
      else vi.advanceTimersByTime(longestPageMs)
    }
    expect(await publish([event(1)])).toEqual({ rejected: [] })
    expect(vi.getTimerCount()).toBe(0)
    const events = [event(1), event(2), event(3)]
    const published = await publish(events, { timeoutMs: 60_000 })
    expect(published.stopped?.taken).toEqual([events[0]])
    expect(unavailable(published).message).toContain('the page took too long')
    expect(numbers()).toEqual([1, 1, 2])
    expect(vi.getTimerCount()).toBe(0)
  })

  it('is unavailable when the connection ends before the answer, or nobody listens', async () => {
    answer = (_received, response) => response.destroy()
    expect(unavailable(await publish([event(1)])).message).toBe(
      'the webhook of partner did not answer: UND_ERR_SOCKET',
    )
    const nobody = createServer().listen(0, '127.0.0.1')
    await once(nobody, 'listening')
    const { port } = nobody.address() as { port: number }
    nobody.close()
    await once(nobody, 'close')
    expect(unavailable(await publish([event(1)], { url: `http://127.0.0.1:${port}/` })).message).toBe(
      'the webhook of partner did not answer: ECONNREFUSED',
    )
  })

  it('has the answer once it has the status: an answer cut off in the middle counts', async () => {
    answer = (_received, response) => {
      response.writeHead(200, { 'content-length': '1000' })
      response.write('{"ok"', () => response.destroy())
    }
    expect(await publish([event(1), event(2)])).toEqual({ rejected: [] })
    answer = (_received, response) => {
      response.writeHead(200, { 'content-length': '1000' })
      response.write('{"ok"')
    }
    expect(await publish([event(3)], { timeoutMs: 2_000 })).toEqual({ rejected: [] })
    expect(numbers()).toEqual([1, 2, 3])
  })

  it('uses its connections again, and cuts off an answer without end', async () => {
    const events = Array.from({ length: 20 }, (_, i) => event(i))
    expect(await publish(events)).toEqual({ rejected: [] })
    // Two take turns: the one is free again a moment after its answer was read.
    expect(connections).toBeLessThanOrEqual(2)
    const gone = new Promise((resolve) => {
      answer = (_received, response) => {
        response.on('close', resolve)
        response.writeHead(200)
        const more = () => {
          while (!response.destroyed && response.write('x'.repeat(16_384)));
          response.once('drain', more)
        }
        more()
      }
    })
    expect(await publish([event(99)], { timeoutMs: 600_000 })).toEqual({ rejected: [] })
    await gone
  })

  it('sends the credentials of the URL as basic authentication, and tells nobody of them', async () => {
    const withSecrets = url.replace('http://', 'http://us%40er:pass-w%C3%B6rd@').concat('?token=query-token')
    const headers = { 'x-key': 'header-key' }
    const errors: unknown[] = []
    for (const fault of [
      status(500),
      status(422),
      ((_received, response) => response.destroy()) as Answering,
    ]) {
      answer = fault
      const { rejected, stopped } = await publish([event(1)], { url: withSecrets, headers })
      errors.push(stopped?.error ?? rejected[0]?.reason)
    }
    expect(received[0]?.request.headers.authorization).toBe(
      `Basic ${Buffer.from('us@er:pass-wörd').toString('base64')}`,
    )
    expect(received[0]?.request.url).toBe('/in?token=query-token')
    expect(errors).toHaveLength(3)
    for (const error of errors) {
      const shown = inspect(error, { depth: Infinity, showHidden: true })
      expect(shown).not.toMatch(/pass-w|us%40er|us@er|query-token|header-key|payload-|reason of the/)
      expect(shown).not.toContain(secret.slice(6))
    }
  })

  it('has the policy and the limit of its options', () => {
    const sink = webhook({
      url,
      secret,
      onReject: 'skip',
      maxAttempts: 3,
      afterDead: 'flow',
      maxEventBytes: 20_000,
    })
    expect(sink.policy).toEqual({ onReject: 'skip', maxAttempts: 3, afterDead: 'flow' })
    expect(sink.maxEventBytes).toBe(20_000)
    expect(webhook({ url, secret })).not.toHaveProperty('maxEventBytes')
  })

  it('names every problem of its options, and repeats no value', () => {
    const wrong = {
      url: 'ftp://user:pass-word@host/?token=query-token',
      secret: ['whsec_c2hvcnQ=', 'no-prefix'],
      headers: { 'webhook-id': '1', 'x-line': 'header-key\n', 'a b': 'c' },
      timeoutMs: 0,
      concurrency: 1.5,
      maxEventBytes: -1,
    }
    let thrown: unknown
    try {
      webhook(wrong)
    } catch (error) {
      thrown = error
    }
    expect(thrown).toBeInstanceOf(InvalidConfigError)
    expect((thrown as InvalidConfigError).problems).toEqual([
      'webhook: url is an http:// or https:// URL',
      'webhook: secret is whsec_ followed by 24 to 64 bytes in base64',
      'webhook: the header webhook-id is not yours to set',
      'webhook: the header x-line has a value that HTTP cannot carry',
      'webhook: a header has a name that HTTP cannot carry',
      'webhook: timeoutMs is a whole number of milliseconds',
      'webhook: concurrency is a whole number from 1 to 1000',
      'webhook: maxEventBytes is a whole number of bytes',
    ])
    expect(inspect(thrown, { depth: Infinity })).not.toMatch(
      /pass-word|query-token|header-key|c2hvcnQ|no-prefix/,
    )
    expect(() => webhook({ url, secret: [] })).toThrow('secret is missing')
    const secretOf = (bytes: number) => `whsec_${randomBytes(bytes).toString('base64')}`
    for (const odd of [secretOf(23), secretOf(65), secretOf(32).slice(6), `${secret} `]) {
      expect(() => webhook({ url, secret: [secret, odd] })).toThrow('secret is whsec_')
    }
    expect(() => webhook({ url, secret: [secretOf(24), secretOf(64)] })).not.toThrow()
    expect(() => webhook({ url, secret: undefined as unknown as string })).toThrow('secret is whsec_')
    expect(() =>
      webhook({ url: 'http://user@host/', secret, headers: { Authorization: 'Bearer x' } }),
    ).toThrow('either the url has a user or the headers have authorization')
  })

  it('says what to install where the package that signs is missing', async () => {
    const dir = await mkdtemp(join(tmpdir(), 'holdfast-webhook-'))
    await cp(join(inject('compiled'), 'src'), join(dir, 'src'), { recursive: true })
    await cp(join(inject('compiled'), 'package.json'), join(dir, 'package.json'))
    const module = pathToFileURL(join(dir, 'src/jobs/sinks/webhook.js')).href
    const script = `
      const { webhook } = await import(${JSON.stringify(module)})
      await webhook({ url: 'https://example.com/', secret: ${JSON.stringify(secret)} }).open({ clock: Date })
        .catch((error) => console.log(JSON.stringify({ code: error.code, message: error.message })))`
    const { stdout } = await promisify(execFile)(process.execPath, ['--input-type=module', '-e', script])
    await rm(dir, { recursive: true, force: true })
    expect(JSON.parse(stdout)).toEqual({
      code: 'HOLDFAST_INVALID_CONFIG',
      message: 'webhook: the package that signs is missing; run `npm install standardwebhooks`',
    })
  })
})
