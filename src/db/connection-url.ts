import { readFileSync } from 'node:fs'
import { isIP } from 'node:net'
import { type ConnectionOptions, createSecureContext } from 'node:tls'

/**
 * What a URL of a database says of TLS, as libpq reads it, and the URL without that. Two drivers connect to one URL,
 * postgres.js and, for BullMQ, node-postgres, and each would read it in a way of its own.
 *
 * `sslmode`: `require` verifies nothing, unless `sslrootcert` names a CA; `verify-ca` the chain; `verify-full` the name as well.
 * `prefer` and `allow` never fall back to plain text, which libpq would do: they mean `require`. `sslcert`, `sslkey` and
 * `sslpassword` are the client's. What the URL leaves out the environment may say (PGSSLMODE and so on); where neither says
 * anything, nothing is encrypted. Of a parameter that is there twice the last one counts.
 */
export type DatabaseUrl = {
  url: string
  ssl: false | ConnectionOptions
  /** TLS from the first byte on (PostgreSQL 17) */
  sslnegotiation?: 'direct'
}

const sslmodes = ['disable', 'allow', 'prefer', 'require', 'verify-ca', 'verify-full']
const ours = ['ssl', 'sslmode', 'sslrootcert', 'sslcert', 'sslkey', 'sslpassword', 'sslnegotiation']

/** Throws an Error whose message says what is wrong, with the files that are named as well, and does not repeat the URL. */
export function readDatabaseUrl(given: string): DatabaseUrl {
  // As a file of secrets ends.
  const text = given.trim()
  const at = text.indexOf('?')
  const url = at === -1 ? text : text.slice(0, at)
  const parts = at === -1 ? [] : text.slice(at + 1).split('&')
  const isOurs = (part: string) => ours.includes(part.split('=', 1)[0] ?? '')
  const rest = parts.filter((part) => part !== '' && !isOurs(part))
  const hosts = hostsOf(url)
  const said = fromQuery(parts.filter(isOurs))
  const parameters = { ...fromEnvironment(), ...said }
  const ssl = withHost(readTls(parameters), hosts)
  if (said.sslnegotiation === 'direct' && ssl === false)
    throw new Error('sslnegotiation=direct needs an sslmode that encrypts')
  const direct = parameters.sslnegotiation === 'direct' && ssl !== false
  return {
    url: rest.length === 0 ? url : `${url}?${rest.join('&')}`,
    ssl,
    ...(direct ? { sslnegotiation: 'direct' } : {}),
  }
}

/** The hosts that a URL names; several are tried in turn. Throws where it is no URL. */
export function hostsOf(url: string): string[] {
  return authoritiesOf(url).map(
    (authority) => withoutPort(authority).replaceAll(/^\[|\]$/g, '') || process.env.PGHOST || 'localhost',
  )
}

/** For postgres.js, which takes an IPv6 address apart at its colons: hosts and ports by themselves, where there is one. */
export function addressesOf(url: string): { host?: string[]; port?: number[] } {
  const authorities = authoritiesOf(url)
  if (!authorities.some((authority) => authority.startsWith('['))) return {}
  const usual = Number(process.env.PGPORT) || 5432
  const port = authorities.map(
    (authority) => Number(authority.slice(withoutPort(authority).length + 1)) || usual,
  )
  return { host: hostsOf(url), port }
}

/** `host:port` each */
function authoritiesOf(url: string): string[] {
  const [, scheme = '', user = '', hosts = '', path = ''] =
    /^([a-z]+:\/\/)([^/?]*@)?([^/?@]*)(.*)$/i.exec(url) ?? []
  const all = hosts.split(',')
  if (!all.every((host) => URL.canParse(`${scheme}${user}${host}${path}`)))
    throw new Error('not a URL; percent-encode what is special in the user, the password and the name')
  return all
}

function withoutPort(authority: string): string {
  return authority.replace(/:\d*$/, '')
}

type Parameters = Partial<Record<string, string>>

function fromQuery(parts: readonly string[]): Parameters {
  const { ssl, ...parameters }: Parameters = Object.fromEntries(new URLSearchParams(parts.join('&')))
  if (ssl === undefined || parameters.sslmode !== undefined) return parameters
  return { ...parameters, sslmode: longOf(ssl) }
}

/** Of `?ssl=true` and the like, which the drivers know besides. */
function longOf(short: string): string {
  if (['true', '1'].includes(short)) return 'verify-full'
  return ['false', '0'].includes(short) ? 'disable' : short
}

function fromEnvironment(): Parameters {
  const { PGSSLMODE, PGSSLROOTCERT, PGSSLCERT, PGSSLKEY, PGSSLNEGOTIATION } = process.env
  const said = {
    sslmode: PGSSLMODE,
    sslrootcert: PGSSLROOTCERT,
    sslcert: PGSSLCERT,
    sslkey: PGSSLKEY,
    sslnegotiation: PGSSLNEGOTIATION,
  }
  return Object.fromEntries(Object.entries(said).filter(([, value]) => value !== undefined && value !== ''))
}

function readTls({
  sslmode,
  sslrootcert,
  sslcert,
  sslkey,
  sslpassword,
}: Parameters): false | ConnectionOptions {
  const system = sslrootcert === 'system'
  const mode = sslmode ?? (sslrootcert !== undefined || sslcert !== undefined ? 'verify-full' : 'disable')
  if (!sslmodes.includes(mode)) throw new Error(`sslmode is one of ${sslmodes.join(', ')}`)
  if (mode === 'disable') return false
  const verifiesAll = mode === 'verify-full' || system
  const verifies = verifiesAll || sslrootcert !== undefined
  if (mode === 'verify-ca' && !verifies)
    throw new Error('sslmode=verify-ca needs sslrootcert, the file of the CA; or write verify-full')
  const options: ConnectionOptions = {
    ...(sslrootcert === undefined || system ? {} : { ca: readPem('sslrootcert', sslrootcert) }),
    ...(sslcert === undefined ? {} : { cert: readPem('sslcert', sslcert) }),
    ...(sslkey === undefined ? {} : { key: readPem('sslkey', sslkey) }),
    ...(sslpassword === undefined ? {} : { passphrase: sslpassword }),
    ...(verifies ? {} : { rejectUnauthorized: false }),
    ...(verifies && !verifiesAll ? { checkServerIdentity: () => undefined } : {}),
  }
  try {
    // What does not fit together would be thrown where no driver catches it.
    createSecureContext(options)
  } catch (error) {
    throw new FilesError('sslrootcert, sslcert and sslkey do not fit together', { cause: error })
  }
  return options
}

function readPem(name: string, file: string): string {
  let text: string
  try {
    text = readFileSync(file, 'utf8')
  } catch (error) {
    throw new FilesError(
      `${name}: the file cannot be read (${(error as { code?: string }).code ?? 'unknown'})`,
      {
        cause: error,
      },
    )
  }
  if (!text.includes('-----BEGIN ')) throw new FilesError(`${name}: the file has no PEM in it`)
  return text
}

/** For a host that is an address postgres.js names none, and Node would hold the certificate against "localhost". */
function withHost(ssl: false | ConnectionOptions, hosts: readonly string[]): false | ConnectionOptions {
  const verifiesName = ssl !== false && ssl.rejectUnauthorized !== false && !ssl.checkServerIdentity
  if (!verifiesName || !hosts.some((host) => isIP(host) !== 0)) return ssl
  if (hosts.length > 1)
    throw new Error('sslmode=verify-full needs names where the URL has several hosts, not addresses')
  return { ...ssl, host: hosts[0] }
}

/** At the start a mistake; later on files that are just being replaced. */
class FilesError extends Error {
  readonly code = 'CERT_FILES'
}

/**
 * True where the other side's certificate was not accepted (codes of OpenSSL and Node), or our own files were not there to
 * be read: nothing was sent, and time may heal it.
 */
export function isUntrusted(error: unknown): boolean {
  return (
    error instanceof Error &&
    'code' in error &&
    /^(CERT_(FILES|UNTRUSTED|HAS_EXPIRED|NOT_YET_VALID|REJECTED|REVOKED|SIGNATURE_FAILURE|CHAIN_TOO_LONG)|(DEPTH_ZERO_)?SELF_SIGNED_CERT(_IN_CHAIN)?|UNABLE_TO_(GET_ISSUER_CERT(_LOCALLY)?|VERIFY_LEAF_SIGNATURE)|ERR_TLS_CERT_ALTNAME_INVALID|INVALID_(CA|PURPOSE))$/.test(
      String(error.code),
    )
  )
}
