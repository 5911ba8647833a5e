import { randomBytes } from 'node:crypto'
import { pino } from 'pino'
import { afterAll, inject, onTestFinished } from 'vitest'
import { createClient } from '../../src/db/client.ts'
import { Databases, type Limits } from '../../src/db/databases.ts'
import { checkSchema, migrate } from '../../src/db/migrate.ts'
import { createJobContext, type JobContext, type JobContextOptions } from '../../src/jobs/context.ts'
import { databaseOf } from './templates.ts'

export type Cluster = 'east' | 'west'

type Client = ReturnType<typeof createClient>

/** One connection to each cluster while a file runs: to connect takes longer than to copy a database. */
const clusters = new Map<Cluster, Client>()
afterAll(async () => {
  for (const sql of clusters.values()) await sql.end()
})

async function copyOf(template: string, cluster: Cluster): Promise<string> {
  const url = new URL(inject('postgres')[cluster])
  const sql = clusters.get(cluster) ?? createClient(url.href, { max: 1 })
  clusters.set(cluster, sql)
  const name = `test_${randomBytes(6).toString('hex')}`
  await sql`create database ${sql(name)} template ${sql(template)}`
  url.pathname = `/${name}`
  return url.href
}

/** A new empty database in one of the run's clusters. */
export function newDatabase(cluster: Cluster = 'east'): Promise<string> {
  return copyOf('template1', cluster)
}

/**
 * URLs for `primary` and the further participants, each a new database that only has to be told its installation by
 * `migrate`; `billing: 'west'` puts one elsewhere.
 */
export async function newDatabases(others: Record<string, Cluster> = {}): Promise<Record<string, string>> {
  const urls: Record<string, string> = { primary: await copyOf(databaseOf('primary'), 'east') }
  for (const [name, cluster] of Object.entries(others))
    urls[name] = await copyOf(databaseOf('participant'), cluster)
  return urls
}

/** After the test that runs, so that connections do not pile up; in a hook of the file, after the file. */
function closeLater(close: () => Promise<void>): void {
  try {
    onTestFinished(close)
  } catch {
    afterAll(close)
  }
}

/** What jobs need, over these databases, as one more process would have it. */
export async function openContext(
  urls: Record<string, string>,
  limits: Partial<Limits> = { lockTimeoutMs: 2_000, idleTimeoutMs: 20_000 },
  options: Partial<JobContextOptions> = {},
): Promise<JobContext> {
  const databases = new Databases(urls, limits)
  await migrate(databases)
  const { id } = await checkSchema(databases)
  const log = pino({ level: process.env.LOG_LEVEL ?? 'silent' })
  const ctx = await createJobContext({
    databases,
    installation: id,
    kind: 'worker',
    leaseMs: 60_000,
    log,
    ...options,
  })
  closeLater(async () => {
    await ctx.lease.end()
    await databases.end()
  })
  return ctx
}
