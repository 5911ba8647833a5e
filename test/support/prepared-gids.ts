import type { JobContext } from '../../src/jobs/context.ts'

/** Every prepared transaction in the context's databases, whoever made it. */
export async function preparedGids(ctx: JobContext): Promise<string[]> {
  const lists = await Promise.all(
    ctx.databases.all.map(
      (p) => p.sql<{ gid: string }[]>`select gid from pg_prepared_xacts where database = current_database()`,
    ),
  )
  return lists.flat().map((row) => row.gid)
}
