import { expect, it, onTestFinished } from 'vitest'
import { endRun } from '../../src/db/attempts.ts'
import { createClient } from '../../src/db/client.ts'
import { beginDistributed } from '../../src/jobs/begin.ts'
import { newDatabase, openContext } from '../support/database.ts'

// Whoever has waited for a row in a SERIALIZABLE transaction fails with 40001.
it('a single statement goes on after it has waited for a row, whatever isolation the database has as its default', async () => {
  const url = await newDatabase()
  const client = createClient(url, { max: 2 })
  onTestFinished(() => client.end())
  const database = new URL(url).pathname.slice(1)
  await client.unsafe(`alter database ${database} set default_transaction_isolation = 'serializable'`)
  const ctx = await openContext({ primary: url })
  const { primary } = ctx.databases
  const { attempt } = await beginDistributed(ctx, 'order_1', async () => null)
  await client`update holdfast.distributed_transactions set owner = 'me'`
  const holder = await client.reserve()
  await holder`begin`
  await holder`update holdfast.distributed_transactions set updated_at = clock_timestamp()`

  const ending = endRun(primary, attempt, 'me', false)
  ending.catch(() => undefined)
  const waiting = () => client`
    select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'`
  await expect.poll(async () => (await waiting()).length).toBe(1)
  await holder`commit`
  holder.release()

  await ending
  expect([...(await primary.sql`select owner from holdfast.distributed_transactions`)]).toEqual([
    { owner: null },
  ])
})
