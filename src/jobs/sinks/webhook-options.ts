import { unescape } from 'node:querystring'
import { InvalidConfigError } from '../../db/errors.ts'
import type { SinkPolicy } from './sink.ts'

export type WebhookOptions = SinkPolicy & {
  /** http:// or https://; a user and password in it are sent as basic authentication */
  url: string
  /** `whsec_` and 24 to 64 bytes in base64. Several, while they are rotated: each signs */
  secret: string | readonly string[]
  /** sent with every event, beside what Standard Webhooks and CloudEvents prescribe */
  headers?: Readonly<Record<string, string>>
  /** how long the receiver has for its answer; default 10 s */
  timeoutMs?: number
  /** how many events may be on their way at once, those of one key one after the other; default 8 */
  concurrency?: number
  /** the largest event that the receiver takes, as CloudEvent in JSON; default no limit */
  maxEventBytes?: number
}

/** Where a request goes and what it carries; the credentials are out of the URL, which fetch refuses with them in it. */
export type Endpoint = {
  url: string
  secrets: readonly string[]
  headers: Readonly<Record<string, string>>
  timeoutMs: number
  concurrency: number
}

/** Throws InvalidConfigError with every problem; none of them repeats a value, which may be a secret. */
export function endpointOf(options: WebhookOptions): Endpoint {
  const { headers = {}, timeoutMs = 10_000, concurrency = 8, maxEventBytes } = options
  const secrets = Array.isArray(options.secret) ? (options.secret as string[]) : [options.secret as string]
  const url = parse(options.url)
  const problems = [
    ...(url ? [] : ['url is an http:// or https:// URL']),
    ...(secrets.length > 0 ? [] : ['secret is missing']),
    ...(secrets.every(isSecret) ? [] : ['secret is whsec_ followed by 24 to 64 bytes in base64']),
    ...(url?.username && Object.keys(headers).some((name) => /^authorization$/i.test(name))
      ? ['either the url has a user or the headers have authorization']
      : []),
    ...Object.entries(headers).flatMap(([name, value]) => problemsOfHeader(name, value)),
    ...(isCount(timeoutMs, 2_147_483_647) ? [] : ['timeoutMs is a whole number of milliseconds']),
    ...(isCount(concurrency, 1_000) ? [] : ['concurrency is a whole number from 1 to 1000']),
    ...(maxEventBytes === undefined || isCount(maxEventBytes, Number.MAX_SAFE_INTEGER)
      ? []
      : ['maxEventBytes is a whole number of bytes']),
  ]
  if (!url || problems.length > 0) throw new InvalidConfigError(problems.map((p) => `webhook: ${p}`))
  const { username, password } = url
  url.username = ''
  url.password = ''
  return {
    url: url.href,
    secrets,
    headers: username || password ? { authorization: basic(username, password), ...headers } : headers,
    timeoutMs,
    concurrency,
  }
}

function parse(url: string): URL | undefined {
  const parsed = URL.canParse(url) ? new URL(url) : undefined
  return parsed && /^https?:$/.test(parsed.protocol) ? parsed : undefined
}

function isSecret(secret: unknown): boolean {
  if (typeof secret !== 'string' || !secret.startsWith('whsec_')) return false
  const base64 = secret.slice('whsec_'.length)
  const key = Buffer.from(base64, 'base64')
  return key.toString('base64') === base64 && key.length >= 24 && key.length <= 64
}

/** What the sink or the connection sets by itself. */
const reserved =
  /^(webhook-.*|content-(type|length|encoding)|host|connection|keep-alive|transfer-encoding|upgrade|expect|te|trailer)$/i

function problemsOfHeader(name: string, value: unknown): string[] {
  if (reserved.test(name)) return [`the header ${name.toLowerCase()} is not yours to set`]
  if (!/^[\w!#$%&'*+.^`|~-]+$/.test(name)) return ['a header has a name that HTTP cannot carry']
  if (typeof value !== 'string' || !/^[\t\x20-\x7e\x80-\xff]*$/.test(value))
    return [`the header ${name.toLowerCase()} has a value that HTTP cannot carry`]
  return []
}

function isCount(value: unknown, most: number): boolean {
  return Number.isSafeInteger(value) && (value as number) >= 1 && (value as number) <= most
}

function basic(username: string, password: string): string {
  return `Basic ${Buffer.from(`${unescape(username)}:${unescape(password)}`).toString('base64')}`
}
