import { pino } from 'pino'
import { Databases } from '../src/db/databases.ts'
import { checkSchema, migrate } from '../src/db/migrate.ts'
import { createJobContext, type JobContext } from '../src/jobs/context.ts'

/** A migrated database and what jobs need, without queues. */
export async function openBenchContext(
  url: string,
): Promise<{ ctx: JobContext; close: () => Promise<void> }> {
  const databases = new Databases({ primary: url })
  await migrate(databases)
  const { id } = await checkSchema(databases)
  const log = pino({ level: 'silent' })
  const ctx = await createJobContext({ databases, installation: id, kind: 'worker', leaseMs: 60_000, log })
  await ctx.lease.hold()
  const close = async () => {
    await ctx.lease.end()
    await databases.end()
  }
  return { ctx, close }
}
