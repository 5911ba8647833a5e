import { sandboxDatabase } from 'holdfast/testing'

/**
 * New databases on the embedded PostgreSQL, for an example that connects to them by itself as well. Their URLs go into the
 * environment, as those of databases of one's own would: the processes of the example find them there.
 */
export async function ownDatabases(...others) {
  const sandbox = await sandboxDatabase({ participants: others })
  const { primary, ...further } = sandbox.urls
  delete process.env.HOLDFAST_DATABASE_PRIMARY_URL
  process.env.DATABASE_URL = primary
  for (const [name, url] of Object.entries(further))
    process.env[`HOLDFAST_DATABASE_${name.toUpperCase()}_URL`] = url
  return sandbox
}
