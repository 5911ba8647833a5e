import { isIP } from 'node:net'
import type { ConnectionOptions } from 'node:tls'
import { parse } from 'pg-connection-string'

/**
 * What a URL of a database says of TLS, as libpq reads it (`sslmode`, `sslrootcert`, `sslcert`, `sslkey`), and the URL without
 * that. Two drivers connect to one URL, postgres.js and, for BullMQ, node-postgres, and each would read it in a way of its own.
 *
 * `require` verifies nothing, unless there is a CA; `verify-ca` the chain; `verify-full` the name as well. `prefer` and `allow` never
 * fall back to plain text, which libpq would do: they mean `require`. Without any of them nothing is encrypted.
 */
export type DatabaseUrl = { url: string; ssl: boolean | ConnectionOptions }

const sslmodes = ['disable', 'allow', 'prefer', 'require', 'verify-ca', 'verify-full']
const ours = ['ssl', 'sslmode', 'sslrootcert', 'sslcert', 'sslkey']

/** Throws an Error whose message says what is wrong with the parameters, or with the files that they name. */
export function readDatabaseUrl(text: string): DatabaseUrl {
  const [url = '', query = ''] = text.split('?', 2)
  const parameters = query.split('&').filter((part) => part !== '')
  const isOurs = (part: string) => ours.includes(part.split('=', 1)[0] ?? '')
  const rest = parameters.filter((part) => !isOurs(part))
  return {
    url: rest.length === 0 ? url : `${url}?${rest.join('&')}`,
    ssl: withHost(readTls(new URLSearchParams(parameters.filter(isOurs).join('&'))), hostsOf(url)),
  }
}

/**
 * For a host that is an address neither driver says which one, and Node would hold the certificate against "localhost"
 * (tls.connect, `servername`).
 */
function withHost(ssl: boolean | ConnectionOptions, hosts: readonly string[]): boolean | ConnectionOptions {
  if (ssl === false || !hosts.some((host) => isIP(host) !== 0)) return ssl
  const options = ssl === true ? {} : ssl
  if (options.rejectUnauthorized === false || options.checkServerIdentity !== undefined) return options
  if (hosts.length > 1)
    throw new Error('sslmode=verify-full needs names where the URL has several hosts, not addresses')
  return { ...options, host: hosts[0] }
}

function hostsOf(url: string): string[] {
  const hosts = /^[^:]+:\/\/(?:[^@/]*@)?([^/]*)/.exec(url)?.[1] ?? ''
  return hosts.split(',').map((host) => host.replace(/:\d+$/, '').replaceAll(/^\[|\]$/g, ''))
}

function readTls(parameters: URLSearchParams): boolean | ConnectionOptions {
  if (parameters.size === 0) return false
  const short = parameters.get('ssl')
  parameters.delete('ssl')
  if (short !== null && !parameters.has('sslmode')) parameters.set('sslmode', longOf(short))
  const mode = parameters.get('sslmode') ?? 'verify-full'
  if (!sslmodes.includes(mode)) throw new Error(`sslmode is one of ${sslmodes.join(', ')}`)
  if (mode === 'verify-ca' && !parameters.has('sslrootcert'))
    throw new Error('sslmode=verify-ca needs sslrootcert, the file of the CA; or write verify-full')
  parameters.set('sslmode', mode === 'allow' || mode === 'prefer' ? 'require' : mode)
  const { ssl } = parse(`postgres://host/?${parameters.toString()}`, { useLibpqCompat: true })
  return ssl as boolean | ConnectionOptions
}

/** Of `?ssl=true` and the like, which the drivers know besides. */
function longOf(short: string): string {
  if (['true', '1'].includes(short)) return 'verify-full'
  return ['false', '0'].includes(short) ? 'disable' : short
}

/** True where the other side's certificate was not accepted (codes of Node and OpenSSL). */
export function isUntrusted(error: unknown): boolean {
  return error instanceof Error && 'code' in error && /CERT|^UNABLE_TO_/.test(String(error.code))
}
