import { resolve } from 'node:path'
import type { Logger } from 'pino'
import { isUntrusted } from '../db/connection-url.ts'
import { createDatabase } from '../db/create-database.ts'
import { Databases } from '../db/databases.ts'
import { type EmbeddedServer, startEmbedded } from '../db/embedded/server.ts'
import { DatabaseUnreachableError } from '../db/errors.ts'
import { messageOf } from '../db/message-of.ts'
import { checkSchema, migrate } from '../db/migrate.ts'
import { isUnreachable } from '../db/sqlstate.ts'
import type { WorkerKind } from '../db/workers.ts'
import { createJobContext, type JobContext } from '../jobs/context.ts'
import { eventLimits } from '../jobs/event-limits.ts'
import { registerJob } from '../jobs/run-job.ts'
import type { ResolvedConfig } from './config.ts'
import { migrateQueues, Queues } from './queues.ts'

/** Everything a process is made of: the composition root. */
export type Context = JobContext & {
  config: ResolvedConfig
  queues: Queues
  close(): Promise<void>
}

/** Opens databases and queues; starts nothing. What it opened is closed again when it throws. */
export async function createContext(config: ResolvedConfig, kind: WorkerKind, log: Logger): Promise<Context> {
  const opened: (() => Promise<void>)[] = []
  const close = async () => {
    for (const undo of opened.splice(0).toReversed()) await undo()
  }
  try {
    const urls = await embeddedUrls(config.databases, (server) => opened.push(() => server.release()))
    // Each relay holds a connection for reading and one for its pages; an installation has four shards.
    const relays = 4 * config.sinks.size
    const jobs = [...config.queues.values()].reduce((sum, { concurrency }) => sum + concurrency, 0)
    const { idempotent, distributed } = config.connections
    const databases = new Databases(urls, {
      queries: 4 + relays,
      staging: distributed + jobs + relays,
      works: idempotent,
    })
    opened.push(() => databases.end())
    if (config.migrate) await migrateAll(databases, config)
    const installation = (await checkSchema(databases)).id
    const { operations, alerts, timing } = config
    const job = await createJobContext({
      databases,
      installation,
      kind,
      leaseMs: timing.leaseMs,
      log,
      operations,
      alerts,
      eventLimit: eventLimits(config.sinks, config.routes),
    })
    opened.push(() => job.lease.end())
    for (const definition of config.jobs.values()) registerJob(job, definition)
    const queues = new Queues({
      redis: config.redis,
      postgres: databases.primary.url,
      installation,
      lockMs: config.timing.lockMs,
      log,
    })
    opened.push(() => queues.close())
    return { ...job, config, queues, close }
  } catch (error) {
    await close()
    throw explained(error)
  }
}

/** Brings databases and queues to this code's schema. */
export async function migrateAll(
  databases: Databases,
  config: ResolvedConfig,
  options: { roles?: boolean } = {},
): Promise<{ applied: string[] }> {
  try {
    // The queues' tables first: the roles get their rights on them.
    if (config.redis === undefined) await migrateQueues(databases.primary.url)
    return await migrate(databases, config.namespace, options)
  } catch (error) {
    throw explained(error)
  }
}

/** Of what the driver says where it finds no server. */
function explained(error: unknown): unknown {
  if (isUntrusted(error))
    return new DatabaseUnreachableError(
      `the certificate of a database was not accepted: ${messageOf(error)}. Name the file of its CA with sslrootcert in the URL (or NODE_EXTRA_CA_CERTS), and the host as the certificate does; sslmode=require accepts any`,
      { cause: error },
    )
  if (!isUnreachable(error) || error instanceof DatabaseUnreachableError) return error
  // Where a name has several addresses, Node's error has no text of its own.
  const why = messageOf(error) || (error as { code?: string }).code
  return new DatabaseUnreachableError(
    `a database cannot be reached: ${why}. Is its server up, and are \`databases\` of the config (or DATABASE_URL, HOLDFAST_DATABASE_<NAME>_URL) right?`,
    { cause: error },
  )
}

/** Starts the embedded server if a database asks for it, and creates the databases in it. */
export async function embeddedUrls(
  databases: Readonly<Record<string, string>>,
  onStarted: (server: EmbeddedServer) => void,
): Promise<Record<string, string>> {
  if (!Object.values(databases).includes('embedded')) return { ...databases }
  const server = await startEmbedded({ dir: resolve('.holdfast') })
  onStarted(server)
  const urls: Record<string, string> = {}
  for (const [name, url] of Object.entries(databases)) {
    urls[name] = url === 'embedded' ? await createDatabase(server.url, `holdfast_${name}`) : url
  }
  return urls
}
