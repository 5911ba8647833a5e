import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import postgres from 'postgres'
import { afterAll, describe, expect, it } from 'vitest'
import { createClient } from '../../src/db/client.ts'
import { isConnectionLoss, sqlstateOf } from '../../src/db/sqlstate.ts'
import { formatGid, newAttempt, newOwnerId } from '../../src/db/transaction-name.ts'
import { sandboxDatabase } from '../../src/testing/index.ts'
import { createHoldfast } from '../../src/workers/holdfast.ts'

const dir = await mkdtemp(join(tmpdir(), 'holdfast-sandbox-'))
/** Keeps the server while the tests look at what a drop has left; its superuser sees every database. */
const keeper = await sandboxDatabase({ dir })
const sql = createClient(keeper.urls.primary, { max: 1 })
afterAll(async () => {
  await sql.end({ timeout: 5 })
  await keeper.drop()
  await rm(dir, { recursive: true, force: true })
})

const nameOf = (url: string) => new URL(url).pathname.slice(1)
const exists = async (url: string) =>
  (await sql`select 1 from pg_database where datname = ${nameOf(url)}`).length === 1
const prepared = async (url: string) =>
  (await sql`select 1 from pg_prepared_xacts where database = ${nameOf(url)}`).length

/** A prepared transaction as a process that is gone leaves it behind. */
async function leavePrepared(url: string): Promise<postgres.Sql> {
  const left = createClient(url, { max: 1 })
  const owner = newOwnerId()
  const gid = formatGid({
    installation: owner,
    policy: 'presumed-abort',
    participant: 'primary',
    attempt: newAttempt(owner),
    name: 'left',
  })
  await left.unsafe(`begin; create table left_over (); prepare transaction '${gid}'`)
  return left
}

describe('a sandbox', () => {
  it('has new, empty databases for a Holdfast, and drops them with what was left prepared', async () => {
    const sandbox = await sandboxDatabase({ dir, participants: ['billing'] })
    const hf = await createHoldfast({ databases: sandbox.urls, migrate: true })
    try {
      const nothing = async () => undefined
      await hf.beginDistributed('left_behind', { primary: nothing, billing: nothing })
      expect([await prepared(sandbox.urls.primary), await prepared(sandbox.urls.billing)]).toEqual([1, 1])
    } finally {
      await hf.close()
    }
    await sandbox.drop()
    await sandbox.drop()
    expect([await exists(sandbox.urls.primary), await exists(sandbox.urls.billing)]).toEqual([false, false])
    expect(await prepared(sandbox.urls.primary)).toBe(0)
  })

  it('goes with connections open, idle ones and one that is at work', async () => {
    const sandbox = await sandboxDatabase({ dir })
    const left = await leavePrepared(sandbox.urls.primary)
    const busy = createClient(sandbox.urls.primary, { max: 1 })
    const asleep = busy`select pg_sleep(60)`.then(
      () => undefined,
      (error: unknown) => error,
    )
    const sleepers = async () =>
      (
        await sql`select 1 from pg_stat_activity where wait_event = 'PgSleep' and query = 'select pg_sleep(60)'`
      ).length
    await expect.poll(sleepers, { timeout: 20_000 }).toBe(1)
    await sandbox.drop()
    expect(isConnectionLoss(await asleep)).toBe(true)
    expect(await exists(sandbox.urls.primary)).toBe(false)
    await Promise.all([left.end({ timeout: 0 }), busy.end({ timeout: 0 })])
  })

  it('touches nothing outside it', async () => {
    const other = await sandboxDatabase({ dir })
    const left = await leavePrepared(other.urls.primary)
    await (await sandboxDatabase({ dir })).drop()
    expect(await prepared(other.urls.primary)).toBe(1)
    await left.end({ timeout: 5 })
    await other.drop()
  })

  it('says what keeps it where somebody else has prepared something, and releases the server all the same', async () => {
    const sandbox = await sandboxDatabase({ dir })
    const foreign = createClient(sandbox.urls.primary, { max: 1 })
    await foreign`select 1`
    await foreign.unsafe(`begin; create table t (); prepare transaction 'somebody else''s'`)
    await expect(sandbox.drop()).rejects.toSatisfy((error) => sqlstateOf(error) === '55006')
    const again = createClient(sandbox.urls.primary, { max: 1 })
    await again.unsafe(`rollback prepared 'somebody else''s'`)
    await Promise.all([foreign.end({ timeout: 0 }), again.end({ timeout: 5 })])
    await sql.unsafe(`drop database ${nameOf(sandbox.urls.primary)} with (force)`)
  })

  it('is dropped at the end of its scope', async () => {
    let url = ''
    {
      await using sandbox = await sandboxDatabase({ dir })
      url = sandbox.urls.primary
      expect(await exists(url)).toBe(true)
    }
    expect(await exists(url)).toBe(false)
  })

  it('ends the server with its last user', async () => {
    const own = await mkdtemp(join(tmpdir(), 'holdfast-sandbox-'))
    const sandbox = await sandboxDatabase({ dir: own })
    await sandbox.drop()
    const client = postgres(sandbox.urls.primary, { max: 1, connect_timeout: 5 })
    await expect(client`select 1`).rejects.toMatchObject({ code: 'ECONNREFUSED' })
    await client.end({ timeout: 0 })
    await rm(own, { recursive: true, force: true })
  })
})
