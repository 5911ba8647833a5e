import { createClient } from '../../db/client.ts'
import { InvalidConfigError } from '../../db/errors.ts'

/** Checks that the login may create databases and the server can prepare enough; throws with everything that lacks. */
export async function checkServer(url: string): Promise<void> {
  const sql = createClient(url, { max: 1 })
  try {
    const [row] = await sql<{ createdb: boolean; slots: string; login: string }[]>`
      select rolcreatedb or rolsuper as createdb, current_setting('max_prepared_transactions') as slots,
             current_user as login from pg_catalog.pg_roles where rolname = current_user`
    const problems: string[] = []
    if (row?.createdb !== true) {
      problems.push(
        `DATABASE_URL: the login ${row?.login} may not create databases; ALTER ROLE ${row?.login} CREATEDB, or use another login`,
      )
    }
    if (Number(row?.slots) < 50) {
      problems.push(
        `DATABASE_URL: the server has max_prepared_transactions = ${row?.slots}; the demo needs 50 or more. Set it (postgresql.conf, or ALTER SYSTEM SET) and restart the server: a reload is not enough`,
      )
    }
    if (problems.length > 0) throw new InvalidConfigError(problems)
  } finally {
    await sql.end({ timeout: 5 })
  }
}
