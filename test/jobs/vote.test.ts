import { describe, expect, it } from 'vitest'
import { watchSteps } from '../../src/db/steps.ts'
import { type Begun, beginDistributed } from '../../src/jobs/begin.ts'
import type { JobContext } from '../../src/jobs/context.ts'
import { commitDistributed, rollbackDistributed } from '../../src/jobs/coordinator.ts'
import { outcome } from '../../src/jobs/outcome.ts'
import { recover } from '../../src/jobs/recovery.ts'
import type { Work } from '../../src/jobs/stage-work.ts'
import { vote } from '../../src/jobs/vote.ts'
import { newDatabases, openContext } from '../support/database.ts'
import { preparedGids } from '../support/prepared-gids.ts'

async function arrange(): Promise<JobContext> {
  const ctx = await openContext(await newDatabases({ billing: 'west' }))
  for (const { sql } of ctx.databases.all) await sql`create table orders (id int)`
  return ctx
}

function begin(ctx: JobContext, awaits = ['email', 'shipping']): Promise<Begun<unknown>> {
  const work: Work<unknown> = (tx) => tx`insert into orders values (1)`
  return beginDistributed(ctx, 'order_1', { primary: work, billing: work }, { awaits })
}

async function orders(ctx: JobContext): Promise<number[]> {
  return Promise.all(ctx.databases.all.map(async ({ sql }) => (await sql`select 1 from orders`).length))
}

describe('votes', () => {
  it('commit with the last ready one', async () => {
    const ctx = await arrange()
    await begin(ctx)
    expect(await vote(ctx, 'order_1', 'email', 'ready')).toEqual({
      state: 'pending',
      votes: { ready: 1, of: 2 },
    })
    expect(await orders(ctx)).toEqual([0, 0])
    expect(await vote(ctx, 'order_1', 'shipping', 'ready')).toEqual({
      state: 'committed',
      votes: { ready: 2, of: 2 },
    })
    expect(await orders(ctx)).toEqual([1, 1])
  })

  it('roll back with the first abort, and say why', async () => {
    const ctx = await arrange()
    await begin(ctx)
    await vote(ctx, 'order_1', 'email', 'ready')
    expect(await vote(ctx, 'order_1', 'shipping', 'abort', { reason: 'no stock' })).toMatchObject({
      state: 'rolled_back',
    })
    expect(await orders(ctx)).toEqual([0, 0])
    expect((await outcome(ctx, 'order_1')).evidence.reason).toBe('shipping voted abort: no stock')
    expect(await preparedGids(ctx)).toEqual([])
  })

  it('count when they come before all is prepared', async () => {
    const ctx = await arrange()
    watchSteps({
      steps: new Set(['begin.prepared-all']),
      reached: async () => {
        expect(await vote(ctx, 'order_1', 'email', 'ready')).toMatchObject({ state: 'started' })
        expect(await vote(ctx, 'order_1', 'shipping', 'ready')).toMatchObject({ state: 'started' })
      },
    })
    await begin(ctx).finally(() => watchSteps(undefined))
    expect((await outcome(ctx, 'order_1')).state).toBe('committed')
    expect(await orders(ctx)).toEqual([1, 1])
  })

  it('that abort before all is prepared roll the begin back', async () => {
    const ctx = await arrange()
    watchSteps({
      steps: new Set(['begin.prepared-all']),
      reached: async () => void (await vote(ctx, 'order_1', 'email', 'abort')),
    })
    await expect(begin(ctx).finally(() => watchSteps(undefined))).rejects.toMatchObject({
      code: 'HOLDFAST_ROLLED_BACK',
      message: expect.stringContaining('email voted abort'),
    })
    expect(await preparedGids(ctx)).toEqual([])
  })

  it('are written once: the same again changes nothing, another is refused', async () => {
    const ctx = await arrange()
    await begin(ctx)
    await vote(ctx, 'order_1', 'email', 'ready')
    expect(await vote(ctx, 'order_1', 'email', 'ready')).toMatchObject({ votes: { ready: 1, of: 2 } })
    await expect(vote(ctx, 'order_1', 'email', 'abort')).rejects.toMatchObject({
      code: 'HOLDFAST_VOTE_CONFLICT',
    })
    await expect(
      ctx.databases.primary.sql`update holdfast.transaction_votes set vote = 'abort' where service = 'email'`,
    ).rejects.toMatchObject({ code: 'HF001' })
    await rollbackDistributed(ctx, 'order_1', 'test')
  })

  it('that come late are told what was decided', async () => {
    const ctx = await arrange()
    await begin(ctx)
    await ctx.databases.primary.sql`
      update holdfast.distributed_transactions set deadline = clock_timestamp() - interval '1 second'`
    await recover(ctx)
    await expect(vote(ctx, 'order_1', 'email', 'ready')).rejects.toMatchObject({
      code: 'HOLDFAST_ROLLED_BACK',
    })
    expect(await vote(ctx, 'order_1', 'shipping', 'abort')).toMatchObject({ state: 'rolled_back' })
    expect((await outcome(ctx, 'order_1')).evidence.status).toBe('cleaned_up')
  })

  it('are refused from services that are not awaited, and with the token of another', async () => {
    const ctx = await arrange()
    const { tokens } = await begin(ctx)
    await expect(vote(ctx, 'order_1', 'payroll', 'ready')).rejects.toMatchObject({
      code: 'HOLDFAST_UNKNOWN_PARTICIPANT',
    })
    await expect(vote(ctx, 'order_2', 'email', 'ready')).rejects.toMatchObject({
      code: 'HOLDFAST_UNKNOWN_TRANSACTION',
    })
    const foreign = { token: tokens.shipping ?? '' }
    await expect(vote(ctx, 'order_1', 'email', 'ready', foreign)).rejects.toMatchObject({
      code: 'HOLDFAST_NOT_ALLOWED',
    })
    await expect(vote(ctx, 'order_1', 'email', 'maybe' as 'ready')).rejects.toMatchObject({
      code: 'HOLDFAST_INVALID_CONFIG',
    })
    expect(await vote(ctx, 'order_1', 'email', 'ready', { token: tokens.email ?? '' })).toMatchObject({
      votes: { ready: 1, of: 2 },
    })
    const stored = await ctx.databases.primary.sql`select * from holdfast.transaction_votes`
    expect(JSON.stringify(stored)).not.toContain(tokens.email)
    await rollbackDistributed(ctx, 'order_1', 'test')
  })

  it('that are outstanding keep commit from happening', async () => {
    const ctx = await arrange()
    await begin(ctx)
    await vote(ctx, 'order_1', 'email', 'ready')
    await expect(commitDistributed(ctx, 'order_1')).rejects.toMatchObject({
      code: 'HOLDFAST_VOTES_OUTSTANDING',
      message: expect.stringContaining('waits for shipping'),
    })
    expect(await orders(ctx)).toEqual([0, 0])
    await rollbackDistributed(ctx, 'order_1', 'test')
  })

  it('of two services at once commit exactly once', async () => {
    const ctx = await arrange()
    for (let round = 0; round < 20; round++) {
      const name = `order_${round}`
      await beginDistributed(ctx, name, async (tx) => tx`insert into orders values (${round})`, {
        awaits: ['email', 'shipping'],
      })
      await Promise.all([vote(ctx, name, 'email', 'ready'), vote(ctx, name, 'shipping', 'ready')])
    }
    expect(
      await ctx.databases.primary.sql`select count(*)::int, count(distinct id)::int as ids from orders`,
    ).toEqual([{ count: 20, ids: 20 }])
    const states = await ctx.databases.primary
      .sql`select distinct status from holdfast.distributed_transactions`
    expect(states).toEqual([{ status: 'committed' }])
  })

  it.each([
    [['email', 'email'], 'twice'],
    [['Email'], 'not the name of a service'],
    [['billing'], 'is a database'],
  ])('cannot be awaited from %j', async (awaits, advice) => {
    const ctx = await arrange()
    await expect(begin(ctx, awaits)).rejects.toThrow(advice)
  })
})
