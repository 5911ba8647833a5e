import { mkdir, stat } from 'node:fs/promises'
import path from 'node:path'
import { EmbeddedServerError } from '../errors.ts'
import { chooseAccount, handOver } from './account.ts'
import { type Binaries, findBinaries } from './binaries.ts'
import { ensureCluster, readPassword } from './cluster.ts'
import { withGenerationLock } from './generation-lock.ts'
import { type Layout, layoutOf } from './layout.ts'
import { findPostmaster } from './postmaster.ts'
import { normalizeSettings, type Settings } from './settings.ts'
import { ensureServer } from './start-server.ts'
import { stopServer } from './stop-server.ts'
import { addUser, countUsers, removeUser } from './users.ts'

export type EmbeddedServer = {
  /** superuser connection URL for database `postgres` on 127.0.0.1, password included (percent-encoded) */
  url: string
  /** data folder root, e.g. /abs/.holdfast */
  dir: string
  /** postmaster pid */
  pid: number
  /** release this process's use; stops the server (fast shutdown) when it was the last user. Idempotent. */
  release(): Promise<void>
}

export type EmbeddedOptions = {
  /** made when missing, e.g. path.resolve('.holdfast') */
  dir: string
  /** extra PostgreSQL settings, e.g. { fsync: 'off' }; a server that already runs keeps its own */
  settings?: Record<string, string>
}

/** Long enough for a slow initdb or a start with recovery; each step of a holder is bounded too. */
const lockWaitMs = 180_000

/**
 * Starts the PostgreSQL of this folder, or attaches to it when it runs: it is shared by every process that asks, and
 * ends with the last one that releases it. A process that dies without releasing does not count any more.
 *
 * @throws EmbeddedServerError whatever goes wrong, with the reason from the server's log
 */
export async function startEmbedded(options: EmbeddedOptions): Promise<EmbeddedServer> {
  const layout = layoutOf(path.resolve(options.dir))
  return explained(`the embedded PostgreSQL in ${layout.dir} could not be started`, async () => {
    const settings = normalizeSettings(options.settings ?? {})
    const binaries = await findBinaries()
    await mkdir(layout.locks, { recursive: true, mode: 0o700 })
    return withGenerationLock(layout.locks, lockWaitMs, () => attach(layout, binaries, settings))
  })
}

async function attach(layout: Layout, binaries: Binaries, settings: Settings): Promise<EmbeddedServer> {
  const account = await chooseAccount(layout.dir, layout.data, binaries.postgres)
  if ((await findPostmaster(layout.data)) === undefined) await handOver(account, layout.dir, layout.data)
  await ensureCluster(layout, binaries, account)
  if (await exists(layout.stopping)) await stopServer(layout, binaries, account)
  const { pid, port } = await ensureServer({ layout, binaries, account, settings })
  const password = encodeURIComponent(await readPassword(layout))
  const user = await addUser(layout.users)

  const release = () =>
    explained(`the embedded PostgreSQL in ${layout.dir} could not be released`, async () => {
      // Somebody removed the whole folder; without it PostgreSQL ends by itself within a minute.
      if (!(await exists(layout.locks))) return
      await withGenerationLock(layout.locks, lockWaitMs, async () => {
        await removeUser(user)
        if ((await countUsers(layout.users)) === 0) await stopServer(layout, binaries, account)
      })
    })
  let released: Promise<void> | undefined
  return {
    // Whatever PGSSLMODE says of other servers.
    url: `postgres://postgres:${password}@127.0.0.1:${port}/postgres?sslmode=disable`,
    dir: layout.dir,
    pid,
    release: () => (released ??= release()),
  }
}

async function exists(file: string): Promise<boolean> {
  return (await stat(file).catch(() => undefined)) !== undefined
}

async function explained<T>(failure: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work()
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause)
    throw new EmbeddedServerError(`${failure}: ${reason}`, { cause })
  }
}
