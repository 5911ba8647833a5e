import { rename, rm, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { EmbeddedServerError } from '../errors.ts'
import { type Account, giveTo } from './account.ts'

export type Settings = Readonly<Record<string, string>>

/** Included by postgresql.conf, written before each start. */
export const settingsFile = 'holdfast.conf'

const defaults: Settings = {
  listen_addresses: '127.0.0.1',
  // A socket's path may have about 100 bytes, and the folder is anywhere.
  unix_socket_directories: '',
  max_prepared_transactions: '100',
  max_connections: '200',
  shared_buffers: '256MB',
  wal_level: 'replica',
  synchronous_commit: 'on',
  log_min_messages: 'warning',
  log_checkpoints: 'off',
}

/** Names in lower case, as PostgreSQL compares them; throws for what no line of a settings file can hold. */
export function normalizeSettings(settings: Settings): Settings {
  for (const [name, value] of Object.entries(settings)) {
    if (!/^[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)?$/i.test(name))
      throw new EmbeddedServerError(`${JSON.stringify(name)} is not the name of a PostgreSQL setting`)
    // oxlint-disable-next-line no-control-regex
    if (typeof value !== 'string' || /[\u0000-\u001f]/.test(value))
      throw new EmbeddedServerError(`the PostgreSQL setting ${name} must be a string of one line`)
    if (name.toLowerCase() === 'cluster_name')
      throw new EmbeddedServerError('cluster_name tells whose the server is and cannot be set')
  }
  return Object.fromEntries(Object.entries(settings).map(([name, value]) => [name.toLowerCase(), value]))
}

export async function writeSettings(
  dataDir: string,
  account: Account,
  port: number,
  settings: Settings,
): Promise<void> {
  const lines = Object.entries({ ...defaults, port: String(port), ...settings }).map(
    ([name, value]) => `${name} = '${value.replaceAll('\\', '\\\\').replaceAll("'", "''")}'\n`,
  )
  const file = path.join(dataDir, settingsFile)
  await rm(`${file}.new`, { force: true })
  await writeFile(`${file}.new`, lines.join(''), { mode: 0o600, flag: 'wx' })
  await giveTo(account, `${file}.new`)
  await rename(`${file}.new`, file)
}
