import { describe, expect, it } from 'vitest'
import { Databases } from '../../src/db/databases.ts'
import { SchemaOutdatedError, SchemaTooNewError } from '../../src/db/errors.ts'
import { checkSchema, migrate } from '../../src/db/migrate.ts'
import { migrateQueues } from '../../src/workers/queues.ts'
import { newDatabase } from '../support/database.ts'

async function withDatabases<T>(urls: Record<string, string>, act: (d: Databases) => Promise<T>): Promise<T> {
  const databases = new Databases(urls)
  try {
    return await act(databases)
  } finally {
    await databases.end()
  }
}

describe('migrate', () => {
  it('is safe when ten processes start at once: each migration is applied once, one installation stands', async () => {
    const urls = { primary: await newDatabase(), billing: await newDatabase('west') }
    const all = await Promise.all(
      Array.from({ length: 10 }, () => withDatabases(urls, (databases) => migrate(databases, 'shop'))),
    )
    const applied = all.flatMap((result) => result.applied)
    expect(new Set(applied).size).toBe(applied.length)
    await withDatabases(urls, async (databases) => {
      const installation = await checkSchema(databases)
      expect(installation.namespace).toBe('shop')
      const billing = databases.get('billing')
      expect(await billing.sql`select id, coordinator from holdfast.installation`).toEqual([
        { id: installation.id, coordinator: false },
      ])
      // A participant carries only what it needs.
      expect(await billing.sql`select to_regclass('holdfast.outbox') as outbox`).toEqual([{ outbox: null }])
    })
    await Promise.all(Array.from({ length: 10 }, () => migrateQueues(urls.primary)))
  })

  it('asks for a migration where one lacks, and changes nothing by itself', async () => {
    const primary = await newDatabase()
    await withDatabases({ primary }, async (databases) => {
      await expect(checkSchema(databases)).rejects.toThrow(SchemaOutdatedError)
      await expect(checkSchema(databases)).rejects.toThrow('holdfast migrate')
      expect(await databases.primary.sql`select to_regnamespace('holdfast') as schema`).toEqual([
        { schema: null },
      ])
    })
  })

  it('refuses a database that is newer than the code', async () => {
    const primary = await newDatabase()
    await withDatabases({ primary }, async (databases) => {
      await migrate(databases)
      await databases.primary
        .sql`insert into holdfast.schema_migrations (version, name) values (9999, 'from-the-future')`
      await expect(checkSchema(databases)).rejects.toThrow(SchemaTooNewError)
      await expect(migrate(databases)).rejects.toThrow('a newer Holdfast migrated it')
    })
  })
})
