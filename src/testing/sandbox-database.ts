import { randomBytes } from 'node:crypto'
import { resolve } from 'node:path'
import { createClient } from '../db/client.ts'
import { createDatabase, dropDatabase } from '../db/create-database.ts'
import { defaultLimits, Participant } from '../db/databases.ts'
import { type EmbeddedServer, startEmbedded } from '../db/embedded/server.ts'
import { rollbackPrepared } from '../db/prepared.ts'
import { sqlstateOf } from '../db/sqlstate.ts'
import { parseGid } from '../db/transaction-name.ts'

export type SandboxOptions<P extends string = 'primary'> = {
  /** one new database for each name; default `primary` alone */
  participants?: readonly P[]
  /** data folder of the PostgreSQL, made when missing; default `.holdfast` in the working directory */
  dir?: string
}

export type Sandbox<P extends string = 'primary'> = {
  /** what `databases` in the config takes; the login is a superuser */
  urls: { [K in P | 'primary']: string }
  /**
   * Drops the databases, whoever is still connected to them and whatever Holdfast has left prepared in them, and
   * releases the server, which ends with its last user. Idempotent.
   */
  drop(): Promise<void>
  [Symbol.asyncDispose](): Promise<void>
}

/**
 * A throw-away PostgreSQL for integration tests: new, empty databases with names of their own on the embedded server of
 * a folder, which all processes that ask for it share, so that test files may run side by side.
 *
 * Throws EmbeddedServerError when there is no server to be had.
 */
export async function sandboxDatabase<const P extends string = 'primary'>(
  options: SandboxOptions<P> = {},
): Promise<Sandbox<P>> {
  const server = await startEmbedded({ dir: resolve(options.dir ?? '.holdfast') })
  const created: string[] = []
  const drop = () => dropAll(server, created)
  const urls: Record<string, string> = {}
  try {
    for (const participant of new Set(['primary', ...(options.participants ?? [])])) {
      const name = `sandbox_${randomBytes(8).toString('hex')}`
      created.push(name)
      urls[participant] = await createDatabase(server.url, name)
    }
  } catch (error) {
    await drop()
    throw error
  }
  let dropped: Promise<void> | undefined
  const dropOnce = () => (dropped ??= drop())
  return { urls: urls as Sandbox<P>['urls'], drop: dropOnce, [Symbol.asyncDispose]: dropOnce }
}

/** Every database is tried and the server is released, whatever fails; then the first failure is passed on. */
async function dropAll(server: EmbeddedServer, names: readonly string[]): Promise<void> {
  const drops = await Promise.allSettled(names.map((name) => dropWithPrepared(server.url, name)))
  await server.release()
  for (const drop of drops) if (drop.status === 'rejected') throw drop.reason
}

const objectInUse = '55006'

/**
 * DROP DATABASE WITH (FORCE) ends the connections, but refuses while anything is prepared, and a backend that is being
 * ended may still finish a PREPARE. So it is tried again after what is prepared now was rolled back.
 */
async function dropWithPrepared(serverUrl: string, name: string): Promise<void> {
  for (let triesLeft = 5; ; triesLeft--) {
    await rollbackAllPrepared(serverUrl, name)
    try {
      return await dropDatabase(serverUrl, name)
    } catch (error) {
      if (sqlstateOf(error) !== objectInUse || triesLeft <= 0) throw error
    }
  }
}

async function rollbackAllPrepared(serverUrl: string, name: string): Promise<void> {
  const gids = await listGids(serverUrl, name)
  if (gids.length === 0) return
  const url = new URL(serverUrl)
  url.pathname = `/${name}`
  const database = new Participant('sandbox', url.href, {
    ...defaultLimits,
    queries: 1,
    staging: 1,
  })
  try {
    for (const gid of gids) await rollbackPrepared(database, gid)
  } finally {
    await database.end()
  }
}

async function listGids(serverUrl: string, name: string): Promise<string[]> {
  const sql = createClient(serverUrl, { max: 1 })
  try {
    // Ended first, and waited for: what they prepare comes before the list.
    await sql`select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = ${name}`
    const rows = await sql<{ gid: string }[]>`select gid from pg_prepared_xacts where database = ${name}`
    return rows.map((row) => row.gid).filter((gid) => parseGid(gid))
  } finally {
    await sql.end({ timeout: 5 })
  }
}
