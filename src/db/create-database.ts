import type postgres from 'postgres'
import { createClient } from './client.ts'
import { InvalidNameError } from './errors.ts'
import { SQLSTATE, sqlstateOf } from './sqlstate.ts'

const namePattern = /^[a-z][a-z0-9_-]{0,62}$/

/** Creates a database unless it exists; returns its URL. Two that create it at once both succeed. */
export async function createDatabase(serverUrl: string, name: string): Promise<string> {
  await onServer(serverUrl, name, async (sql) => {
    try {
      await sql`create database ${sql(name)}`
    } catch (error) {
      // Both are what a concurrent CREATE DATABASE of the same name looks like.
      const state = sqlstateOf(error)
      if (state !== SQLSTATE.duplicateDatabase && state !== SQLSTATE.uniqueViolation) throw error
    }
  })
  const url = new URL(serverUrl)
  url.pathname = `/${name}`
  return url.href
}

/** Drops a database with whoever is connected to it. Fails while a prepared transaction lives in it. */
export async function dropDatabase(serverUrl: string, name: string): Promise<void> {
  await onServer(serverUrl, name, async (sql) => {
    await sql`drop database if exists ${sql(name)} with (force)`
  })
}

async function onServer(url: string, name: string, act: (sql: postgres.Sql) => Promise<void>): Promise<void> {
  if (!namePattern.test(name)) throw new InvalidNameError(`not a database name: ${JSON.stringify(name)}`)
  const sql = createClient(url, { max: 1 })
  try {
    await act(sql)
  } finally {
    await sql.end({ timeout: 5 })
  }
}
