import { randomBytes } from 'node:crypto'
import { pino } from 'pino'
import { afterAll, inject, onTestFinished } from 'vitest'
import { createDatabase } from '../../src/db/create-database.ts'
import { Databases, type Limits } from '../../src/db/databases.ts'
import { checkSchema, migrate } from '../../src/db/migrate.ts'
import { createJobContext, type JobContext, type JobContextOptions } from '../../src/jobs/context.ts'

export type Cluster = 'east' | 'west'

/** A new empty database in one of the run's clusters. */
export async function newDatabase(cluster: Cluster = 'east'): Promise<string> {
  return createDatabase(inject('postgres')[cluster], `test_${randomBytes(6).toString('hex')}`)
}

/** URLs for `primary` and the further participants, each a new database; `billing: 'west'` puts one elsewhere. */
export async function newDatabases(others: Record<string, Cluster> = {}): Promise<Record<string, string>> {
  const urls: Record<string, string> = { primary: await newDatabase() }
  for (const [name, cluster] of Object.entries(others)) urls[name] = await newDatabase(cluster)
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
