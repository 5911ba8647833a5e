import { afterEach, beforeAll, describe, expect, it, onTestFinished } from 'vitest'
import { createClient } from '../../src/db/client.ts'
import { Databases } from '../../src/db/databases.ts'
import { HoldfastError, NoSlotsError, UnknownOutcomeError } from '../../src/db/errors.ts'
import { isConnectionLoss } from '../../src/db/sqlstate.ts'
import { type Step, watchSteps } from '../../src/db/steps.ts'
import { formatGid, newAttempt, newOwnerId } from '../../src/db/transaction-name.ts'
import type { Tx } from '../../src/db/tx.ts'
import { beginDistributed } from '../../src/jobs/begin.ts'
import { type Clock, systemClock } from '../../src/jobs/clock.ts'
import type { JobContext } from '../../src/jobs/context.ts'
import { commitDistributed, rollbackDistributed } from '../../src/jobs/coordinator.ts'
import { recover } from '../../src/jobs/recovery.ts'
import { runDistributed } from '../../src/jobs/run-distributed.ts'
import { newDatabase, openContext } from '../support/database.ts'
import { preparedGids } from '../support/prepared-gids.ts'
import { usePrivateServer } from '../support/private-server.ts'

let serial = 0
const workOn = (ctx: JobContext, id: number) =>
  Object.fromEntries(
    ctx.databases.names.map((name) => [
      name,
      async (tx: Tx) => {
        await tx`insert into orders values (${id})`
      },
    ]),
  )
const keptOn = (ctx: JobContext, id: number) =>
  Promise.all(ctx.databases.all.map(async (p) => (await p.sql`select from orders where id = ${id}`).length))
const onEach = (ctx: JobContext, kept: 0 | 1) => ctx.databases.all.map(() => kept)
const rowOf = async (ctx: JobContext, name: string) =>
  (
    await ctx.databases.primary.sql<{ status: string; quarantine: string | null }[]>`
      select status, quarantine from holdfast.distributed_transactions
      where name = ${name} order by created_at desc limit 1`
  )[0]

async function createOrders(ctx: JobContext): Promise<void> {
  for (const participant of ctx.databases.all) await participant.sql`create table orders (id int primary key)`
}

/** Success, or an error that says what kind it is. */
async function outcomeOf<T>(act: Promise<T>): Promise<{ value?: T; error?: unknown }> {
  try {
    return { value: await act }
  } catch (error) {
    if (!(error instanceof HoldfastError) && !isConnectionLoss(error)) throw error
    return { error }
  }
}

/** Acts again until the server, just started, has answered. */
async function onceReachable<T>(act: () => Promise<T>): Promise<T> {
  let result: { value: T } | undefined
  await expect
    .poll(
      async () => {
        const { value, error } = await outcomeOf(act().then((found) => ({ found })))
        if (error !== undefined && !isConnectionLoss(error) && !(error instanceof UnknownOutcomeError))
          throw error
        if (value) result = { value: value.found }
        return result !== undefined
      },
      { interval: 20 },
    )
    .toBe(true)
  return result!.value
}

/** Recovery by another process after the first one's lease, until nothing of the name is under way but what waits. */
async function settle(heir: JobContext, name: string): Promise<void> {
  await onceReachable(() => heir.lease.hold())
  await heir.databases.primary.sql`
    update holdfast.workers set lease_until = clock_timestamp() - interval '1 second' where id <> ${heir.lease.id}`
  await expect
    .poll(
      async () => {
        const report = await onceReachable(() => recover(heir))
        const status = (await rowOf(heir, name))?.status
        const ended = [undefined, 'pending', 'committed', 'rolled_back', 'cleaned_up'].includes(status)
        return ended && report.failed === 0
      },
      { interval: 20 },
    )
    .toBe(true)
}

afterEach(() => watchSteps(undefined))

/** Does something the first time that a step is reached, while whoever reached it waits. */
function atStep(step: Step, act: () => Promise<void>): void {
  watchSteps({
    steps: new Set([step]),
    reached: async () => {
      watchSteps(undefined)
      await act()
    },
  })
}

type Call = 'begin' | 'commit' | 'rollback'
const steps: [Call, Step][] = [
  ['begin', 'begin.recorded'],
  ['begin', 'begin.worked'],
  ['begin', 'begin.prepared-one'],
  ['begin', 'begin.prepared-all'],
  ['begin', 'begin.pending'],
  ['commit', 'commit.decided'],
  ['commit', 'commit.committed-one'],
  ['commit', 'commit.committed-all'],
  ['rollback', 'rollback.decided'],
  ['rollback', 'rollback.fenced-one'],
  ['rollback', 'rollback.fenced-all'],
]

describe('a server that crashes', () => {
  // What is not flushed on purpose is not on disk when it crashes.
  const server = usePrivateServer({ wal_writer_delay: '10s' })
  const layouts: { where: string; back: 'at once' | 'later'; make: () => Promise<Record<string, string>> }[] =
    [
      {
        where: 'the only database',
        back: 'at once',
        make: async () => ({ primary: await server.newDatabase() }),
      },
      {
        where: 'primary of two',
        back: 'later',
        make: async () => ({ primary: await server.newDatabase(), billing: await newDatabase('west') }),
      },
      {
        where: 'the other of two',
        back: 'later',
        make: async () => ({ primary: await newDatabase('east'), billing: await server.newDatabase() }),
      },
    ]

  describe.each(layouts)('$where, and is back $back', ({ back, make }) => {
    let ctx: JobContext
    let heir: JobContext
    beforeAll(async () => {
      const urls = await make()
      ctx = await openContext(urls)
      heir = await openContext(urls)
      await createOrders(ctx)
    })

    it.each(steps)('in the middle of %s, at %s: everything comes to one end', async (call, step) => {
      const id = ++serial
      const name = `crash_${id}`
      if (call !== 'begin') await onceReachable(() => beginDistributed(ctx, name, workOn(ctx, id)))
      let crashed = false
      atStep(step, async () => {
        crashed = true
        await server.kill()
        if (back === 'at once') await server.start()
      })
      const act = {
        begin: () => beginDistributed(ctx, name, workOn(ctx, id)),
        commit: () => commitDistributed(ctx, name),
        rollback: () => rollbackDistributed(ctx, name, 'test'),
      }[call]
      const first = await outcomeOf<unknown>(act())
      watchSteps(undefined)
      expect(crashed).toBe(true)
      if (back === 'later') await server.start()
      await settle(heir, name)
      if (call === 'begin') {
        const status = (await rowOf(heir, name))?.status
        if (first.error === undefined) expect(status).toBe('pending')
        else expect([undefined, 'rolled_back']).toContain(status)
        if (first.error !== undefined) {
          expect(await keptOn(heir, id)).toEqual(onEach(heir, 0))
          await onceReachable(() => beginDistributed(ctx, name, workOn(ctx, id)))
        }
      }
      if (call === 'rollback') {
        expect(await onceReachable(() => rollbackDistributed(ctx, name, 'test'))).toMatchObject({
          state: 'rolled_back',
        })
      } else {
        expect(await onceReachable(() => commitDistributed(ctx, name))).toMatchObject({ state: 'committed' })
      }
      expect(await keptOn(heir, id)).toEqual(onEach(heir, call === 'rollback' ? 0 : 1))
      expect(await rowOf(heir, name)).toEqual({
        status: call === 'rollback' ? 'rolled_back' : 'committed',
        quarantine: null,
      })
      expect(await preparedGids(heir)).toEqual([])
    })
  })

  it('and forgets the row that was not yet on disk leaves nothing prepared, although the process lives', async () => {
    // The row of an attempt on the coordinator database alone may become durable together with its PREPARE.
    const url = await server.newDatabase()
    const [ctx, other] = [await openContext({ primary: url }), await openContext({ primary: url })]
    await createOrders(ctx)
    await ctx.lease.hold()
    atStep('begin.recorded', async () => {
      await server.kill()
      await server.start()
    })
    const { error } = await outcomeOf(beginDistributed(ctx, 'forgotten', workOn(ctx, 1)))
    expect(error).toBeDefined()
    await onceReachable(() => recover(ctx))
    await onceReachable(() => recover(other))
    expect(await preparedGids(ctx)).toEqual([])
    await beginDistributed(ctx, 'forgotten', workOn(ctx, 1))
    await commitDistributed(ctx, 'forgotten')
    expect(await keptOn(ctx, 1)).toEqual([1])
  })
})

describe('a server whose slots are all taken by others', () => {
  const server = usePrivateServer({ max_prepared_transactions: '3' })

  /** Three prepared transactions, of another program and of another installation; returns how to end them. */
  async function takeAllSlots(url: string): Promise<{ gids: string[]; free(this: void): Promise<void> }> {
    const stranger = createClient(url, { max: 1 })
    const others = ['b', 'c'].map((name) =>
      formatGid({
        installation: '0123456789abcdef',
        policy: 'presumed-abort',
        participant: 'primary',
        attempt: newAttempt(newOwnerId()),
        name,
      }),
    )
    const gids = [`somebody-else-${++serial}`, ...others]
    for (const gid of gids) {
      await stranger.unsafe('begin')
      await stranger.unsafe(`create table foreign_${++serial} ()`)
      await stranger.unsafe(`prepare transaction '${gid}'`)
    }
    return {
      gids,
      free: async () => {
        for (const gid of gids) await stranger.unsafe(`rollback prepared '${gid}'`)
        await stranger.end()
      },
    }
  }

  const layouts = [
    { count: 1, urls: async () => ({ primary: await server.newDatabase() }) },
    {
      count: 2,
      urls: async () => ({ primary: await newDatabase('east'), billing: await server.newDatabase() }),
    },
  ]
  it.each(layouts)(
    'pushes back and leaves nothing behind, with $count database(s)',
    async ({ urls: make }) => {
      const urls = await make()
      const ctx = await openContext(urls)
      await createOrders(ctx)
      // The share is granted while there is room; then others are faster.
      await ctx.lease.hold()
      const { gids, free } = await takeAllSlots(Object.values(urls).at(-1) ?? '')
      const id = ++serial
      await expect(beginDistributed(ctx, `full_${id}`, workOn(ctx, id))).rejects.toThrow(NoSlotsError)
      let effects = 0
      const spec = {
        stage: workOn(ctx, id),
        effects: () => {
          effects++
        },
      }
      await expect(runDistributed(ctx, `full_run_${id}`, spec)).rejects.toThrow(NoSlotsError)
      expect(effects).toBe(0)
      expect(await recover(ctx)).toEqual({ committed: 0, rolledBack: 0, left: 0, failed: 0 })
      expect((await preparedGids(ctx)).toSorted()).toEqual(gids.toSorted())
      expect(await keptOn(ctx, id)).toEqual(onEach(ctx, 0))
      for (const name of [`full_${id}`, `full_run_${id}`])
        expect(await rowOf(ctx, name)).toEqual({ status: 'rolled_back', quarantine: null })
      await free()
      expect(await runDistributed(ctx, `full_run_${id}`, spec)).toMatchObject({ state: 'committed' })
      expect(effects).toBe(1)
      expect(await keptOn(ctx, id)).toEqual(onEach(ctx, 1))
      expect(await preparedGids(ctx)).toEqual([])
    },
  )

  it('grants no share, records nothing, and grants one by the heartbeat after they are free again', async () => {
    const url = await server.newDatabase()
    const { gids, free } = await takeAllSlots(url)
    const ctx = await openContext({ primary: url }, undefined, { leaseMs: 600 })
    await createOrders(ctx)
    await expect(beginDistributed(ctx, 'full', workOn(ctx, 1))).rejects.toThrow(NoSlotsError)
    expect(await rowOf(ctx, 'full')).toBe(undefined)
    expect((await preparedGids(ctx)).toSorted()).toEqual(gids.toSorted())
    await free()
    await expect.poll(() => ctx.lease.slots.granted, { interval: 20 }).toBe(2)
    await beginDistributed(ctx, 'full', workOn(ctx, 1))
    expect(await commitDistributed(ctx, 'full')).toMatchObject({ state: 'committed' })
  })
})

describe('a participant that is gone for an hour', () => {
  const server = usePrivateServer()

  it('is told of once, comes back, and everything is finished', async () => {
    const urls = { primary: await newDatabase('east'), billing: await server.newDatabase() }
    const start = Date.now()
    let minutes = 0
    const clock: Clock = { ...systemClock, now: () => start + minutes * 60_000 }
    const ctx = await openContext(urls, undefined, { clock })
    await createOrders(ctx)
    await beginDistributed(ctx, 'waiting', workOn(ctx, 1))
    await beginDistributed(ctx, 'decided', workOn(ctx, 2))
    atStep('commit.decided', () => server.kill())
    expect(await commitDistributed(ctx, 'decided')).toEqual({ state: 'committing', finished: 1, of: 2 })

    const alerts = async (kind: string) => {
      const found = new RegExp(`holdfast_alerts_total{kind="${kind}"} (\\d+)`).exec(
        await ctx.telemetry.registry.metrics(),
      )
      return Number(found?.[1] ?? 0)
    }
    let unreachableAt = 0
    let stuckAt = 0
    for (minutes = 1; minutes < 60; minutes++) {
      // The driver waits longer and longer before it connects again; new pools, as another process has them, do not.
      const databases = new Databases(urls)
      expect(await recover({ ...ctx, databases })).toEqual({
        committed: 0,
        rolledBack: 0,
        left: 2,
        failed: 0,
      })
      await databases.end()
      if ((await alerts('participant_unreachable')) > 0) unreachableAt ||= minutes
      if ((await alerts('stuck')) > 0) stuckAt ||= minutes
    }
    expect([unreachableAt, stuckAt]).toEqual([1, 11])
    expect(await alerts('participant_unreachable')).toBe(1)
    expect(await alerts('stuck')).toBe(1)
    expect(await alerts('requires_manual_intervention')).toBe(0)

    await server.start()
    const databases = new Databases(urls)
    onTestFinished(() => databases.end())
    expect(await recover({ ...ctx, databases })).toEqual({ committed: 1, rolledBack: 0, left: 1, failed: 0 })
    const back = { ...ctx, databases }
    expect(await keptOn(back, 2)).toEqual([1, 1])
    expect(await commitDistributed(back, 'waiting')).toMatchObject({ state: 'committed' })
    expect(await keptOn(back, 1)).toEqual([1, 1])
    expect(await preparedGids(back)).toEqual([])
    expect([await alerts('participant_unreachable'), await alerts('stuck')]).toEqual([1, 1])
  })
})
