import { randomBytes } from 'node:crypto'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { createDatabase } from '../../src/db/create-database.ts'
import { type EmbeddedServer, startEmbedded } from '../../src/db/embedded/server.ts'
import { renewLease } from '../../src/db/workers.ts'
import { beginDistributed } from '../../src/jobs/begin.ts'
import { rollbackDistributed } from '../../src/jobs/coordinator.ts'
import { Slots } from '../../src/jobs/slots.ts'
import { newDatabases, openContext } from '../support/database.ts'

describe('slots of a process', () => {
  it('are given out up to the grant, and the next waits until one is given back', async () => {
    const slots = new Slots()
    slots.grant(2)
    const first = await slots.take()
    await slots.take()
    const waiting = slots.take()
    expect(slots.used).toBe(2)
    first()
    first()
    await waiting
    expect(slots.used).toBe(2)
  })

  it('run out as back-pressure that says what to do', async () => {
    const slots = new Slots()
    slots.grant(1)
    await slots.take()
    await expect(slots.take(5)).rejects.toMatchObject({
      code: 'HOLDFAST_NO_SLOTS',
      message: expect.stringContaining('max_prepared_transactions'),
    })
    expect(slots.used).toBe(1)
  })

  it('that shrink keep the next waiting; that grow let them in', async () => {
    const slots = new Slots()
    slots.grant(2)
    const releases = [await slots.take(), await slots.take()]
    slots.grant(1)
    let entered = 0
    const waiting = [slots.take(), slots.take()].map(async (turn) => {
      await turn
      entered++
    })
    releases[0]?.()
    await Promise.resolve()
    expect(entered).toBe(0)
    slots.grant(4)
    await Promise.all(waiting)
    expect(slots.used).toBe(3)
  })
})

describe('slots of all processes', () => {
  // A server of its own: on a shared one other tests' transactions count as foreign.
  let server: EmbeddedServer
  let dir: string
  beforeAll(async () => {
    dir = await mkdtemp(join(tmpdir(), 'slots-'))
    server = await startEmbedded({ dir, settings: { fsync: 'off' } })
  })
  afterAll(async () => {
    await server.release()
    await rm(dir, { recursive: true, force: true })
  })
  const openAlone = async () =>
    openContext({ primary: await createDatabase(server.url, `slots_${randomBytes(4).toString('hex')}`) })

  const lease = (id: string, wants = 8, coordinator = 10, elsewhere: number | null = null) => ({
    id: id.padEnd(16, '0'),
    kind: 'worker' as const,
    leaseMs: 60_000,
    wants,
    budget: { coordinator, elsewhere },
  })

  it('are shared fairly and never exceed the budget', async () => {
    const { databases } = await openAlone()
    const { sql } = databases.primary
    // Alone: all it wants. A second one gets what is left, until the first comes back for its fair share.
    expect(await renewLease(sql, lease('a'))).toBe(8)
    expect(await renewLease(sql, lease('b'))).toBe(2)
    expect(await renewLease(sql, lease('a'))).toBe(5)
    expect(await renewLease(sql, lease('b'))).toBe(5)
    const [sum] = await sql`select sum(slots)::int from holdfast.workers`
    expect(sum).toEqual({ sum: 10 })
  })

  it('are free again when a lease is over', async () => {
    const { databases } = await openAlone()
    const { sql } = databases.primary
    await renewLease(sql, lease('a'))
    await sql`update holdfast.workers set lease_until = clock_timestamp() - interval '1 second'`
    expect(await renewLease(sql, lease('b'))).toBe(8)
  })

  it('granted at once by many processes stay within the budget', async () => {
    const { databases } = await openAlone()
    const { sql } = databases.primary
    const ids = Array.from({ length: 12 }, (_, i) => i.toString(16))
    for (let round = 0; round < 3; round++) {
      await Promise.all(ids.map((id) => renewLease(sql, lease(id, 4, 10))))
      const [row] = await sql<{ sum: number }[]>`select sum(slots)::int from holdfast.workers`
      expect(row?.sum).toBeLessThanOrEqual(10)
    }
  })

  it('leave room for what is prepared with nobody behind it: waiting, in doubt, or foreign', async () => {
    const ctx = await openAlone()
    const { sql } = ctx.databases.primary
    for (const name of ['a', 'b', 'c']) await beginDistributed(ctx, name, async () => null)
    const foreign = await ctx.databases.primary.staging.acquire()
    await foreign.send("begin; select pg_current_xact_id(); prepare transaction 'somebody else''s'")
    await sql`delete from holdfast.workers`
    expect(await renewLease(sql, lease('a', 100))).toBe(10 - 4)
    await foreign.send("rollback prepared 'somebody else''s'")
    // Elsewhere only what is our own holds slots as well.
    const elsewhere = { ...lease('a', 100), budget: { coordinator: 10, elsewhere: 5 } }
    await foreign.send("begin; select pg_current_xact_id(); prepare transaction 'somebody else''s'")
    expect(await renewLease(sql, elsewhere)).toBe(5 - 3)
    await foreign.send("rollback prepared 'somebody else''s'")
    await ctx.databases.primary.staging.release(foreign, true)
    for (const name of ['a', 'b', 'c']) await rollbackDistributed(ctx, name, 'test')
    expect(await renewLease(sql, lease('a', 100))).toBe(10)
  })
})

describe('transactions that wait for a hand', () => {
  it('take half of what the servers have room for at most, and the refused one leaves nothing', async () => {
    const ctx = await openContext(await newDatabases())
    const small = { ...ctx, slotBudget: { coordinator: 90, elsewhere: 4 } }
    await beginDistributed(small, 'a', async () => null)
    await beginDistributed(small, 'b', async () => null)
    await expect(beginDistributed(small, 'c', async () => null)).rejects.toMatchObject({
      code: 'HOLDFAST_NO_SLOTS',
      message: expect.stringContaining('holdfast tx list'),
    })
    const { sql } = ctx.databases.primary
    expect(await sql`select 1 from holdfast.distributed_transactions where name = 'c'`).toEqual([])
    await rollbackDistributed(small, 'a', 'test')
    await beginDistributed(small, 'c', async () => null)
    for (const name of ['b', 'c']) await rollbackDistributed(small, name, 'test')
  })
})
