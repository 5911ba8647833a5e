import { createDatabase } from '../../src/db/create-database.ts'
import { Databases } from '../../src/db/databases.ts'
import { migrate } from '../../src/db/migrate.ts'

/**
 * What new databases of a cluster are copied from: with all migrations, and of no installation yet, so that `migrate` has
 * only to record one. A copy takes a fifth of the time that the migrations do.
 */
export type Template = 'primary' | 'participant'

export const databaseOf = (template: Template) => `template_${template}`

export async function createTemplates(cluster: string): Promise<void> {
  const primary = await createDatabase(cluster, databaseOf('primary'))
  const participant = await createDatabase(cluster, databaseOf('participant'))
  const databases = new Databases({ primary, participant })
  try {
    await migrate(databases)
    for (const { sql } of databases.all) await sql`delete from holdfast.installation`
  } finally {
    await databases.end()
  }
}
