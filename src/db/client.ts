import postgres from 'postgres'
import { arrayTypes, registerArrayTypes } from './array-types.ts'
import { addressesOf, readDatabaseUrl } from './connection-url.ts'

/** At most a second: the driver's own twenty would hide that a server is back, and from whoever waits why it was away. */
function secondsToWait(retries: number): number {
  return Math.min(2 ** retries / 100, 1) * (0.5 + Math.random() / 2)
}

/** A postgres.js client as Holdfast uses it: notices stay quiet, array types are known without asking. */
export function createClient(
  url: string,
  options: postgres.Options<Record<string, never>> = {},
): postgres.Sql {
  const { url: rest, ...tls } = readDatabaseUrl(url)
  const sql = postgres(rest, {
    ...tls,
    // Lists, which the driver takes and its types do not name.
    ...(addressesOf(rest) as object),
    connect_timeout: 10,
    backoff: secondsToWait,
    onnotice: () => undefined,
    ...options,
    fetch_types: false,
    types: arrayTypes as Record<string, never>,
  })
  registerArrayTypes(sql)
  return sql
}
