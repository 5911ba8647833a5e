import { describe, expect, it } from 'vitest'
import { deferred } from '../../src/db/deferred.ts'
import { RolledBackError } from '../../src/db/errors.ts'
import { watchSteps } from '../../src/db/steps.ts'
import { compensate, dueCompensations } from '../../src/jobs/compensate.ts'
import type { JobContext } from '../../src/jobs/context.ts'
import { commitDistributed, rollbackDistributed } from '../../src/jobs/coordinator.ts'
import { recover } from '../../src/jobs/recovery.ts'
import { type EffectsContext, type RunSpec, runDistributed } from '../../src/jobs/run-distributed.ts'
import { collectGarbage } from '../support/collect-garbage.ts'
import { newDatabases, openContext } from '../support/database.ts'
import { preparedGids } from '../support/prepared-gids.ts'

const signal = new AbortController().signal

/** Two processes over the same two databases, and a table for the work. */
async function arrange(): Promise<{ ctx: JobContext; other: JobContext }> {
  const urls = await newDatabases({ billing: 'west' })
  const ctx = await openContext(urls)
  const other = await openContext(urls)
  for (const { sql } of ctx.databases.all) await sql`create table orders (id int)`
  return { ctx, other }
}

type Log = { effects: EffectsContext<unknown>[]; undone: string[] }

function specOf(log: Log, changes: Partial<RunSpec<unknown, unknown>> = {}): RunSpec<unknown, unknown> {
  return {
    operation: 'order',
    stage: {
      primary: async (tx) => {
        await tx`insert into orders values (1)`
        return { at: new Date(0) }
      },
      billing: async (tx) => {
        await tx`insert into orders values (1)`
      },
    },
    effects: (context) => {
      log.effects.push(context)
      return { charge: 7 }
    },
    compensate: ({ idempotencyKey }) => {
      log.undone.push(idempotencyKey)
    },
    ...changes,
  }
}

const newLog = (): Log => ({ effects: [], undone: [] })

async function ordersIn(ctx: JobContext): Promise<number[]> {
  return Promise.all(ctx.databases.all.map(async ({ sql }) => (await sql`select 1 from orders`).length))
}

async function rowOf(ctx: JobContext, name: string) {
  const [row] = await ctx.databases.primary.sql<
    {
      status: string
      compensation: string
      owner: string | null
      quarantine: string | null
      failures: number
    }[]
  >`
    select status, compensation, owner, quarantine, compensation_failures as failures
    from holdfast.distributed_transactions where name = ${name} order by created_at desc limit 1`
  return row
}

/** What a process that dies in its effects leaves: pending, its lease over. Its call never returns. */
async function diesInEffects(ctx: JobContext, name: string, log: Log): Promise<void> {
  const entered = deferred<void>()
  const hanging = specOf(log, {
    effects: (context) => {
      log.effects.push(context)
      entered.resolve()
      return new Promise(() => undefined)
    },
  })
  void runDistributed(ctx, name, hanging)
  await entered.promise
  await expireLease(ctx)
}

async function expireLease(ctx: JobContext): Promise<void> {
  await ctx.databases.primary.sql`
    update holdfast.workers set lease_until = clock_timestamp() - interval '1 second' where id = ${ctx.lease.id}`
}

describe('runDistributed', () => {
  it('stages, runs effects while it is prepared, and commits', async () => {
    const { ctx } = await arrange()
    const log = newLog()
    const seen: number[] = []
    const spec = specOf(log, {
      effects: async (context) => {
        log.effects.push(context)
        seen.push((await preparedGids(ctx)).length, ...(await ordersIn(ctx)))
        return { charge: 7 }
      },
    })
    const ran = await runDistributed(ctx, 'order_1', spec)
    expect(seen).toEqual([2, 0, 0])
    expect(ran).toMatchObject({ state: 'committed', name: 'order_1', result: { charge: 7 } })
    // What the work returned has taken the way through JSON, as a resumed run sees it.
    expect(ran.staged).toEqual({ primary: { at: '1970-01-01T00:00:00.000Z' } })
    expect(log.effects).toHaveLength(1)
    expect(log.effects[0]?.idempotencyKey).toBe(ran.attempt)
    expect(await ordersIn(ctx)).toEqual([1, 1])
    expect(await rowOf(ctx, 'order_1')).toMatchObject({ status: 'committed', owner: null })
  })

  it('called again gives the stored result and does nothing', async () => {
    const { ctx, other } = await arrange()
    const log = newLog()
    const first = await runDistributed(ctx, 'order_1', specOf(log))
    expect(await runDistributed(other, 'order_1', specOf(log))).toEqual(first)
    expect(log.effects).toHaveLength(1)
    expect(await ordersIn(ctx)).toEqual([1, 1])
  })

  it('rolls back, compensates once and passes the error on when effects fail; the name is free again', async () => {
    const { ctx } = await arrange()
    const log = newLog()
    const refused = new Error('card refused')
    const spec = specOf(log, { effects: () => Promise.reject(refused) })
    await expect(runDistributed(ctx, 'order_1', spec)).rejects.toBe(refused)
    expect(log.undone).toHaveLength(1)
    expect(await rowOf(ctx, 'order_1')).toMatchObject({
      status: 'rolled_back',
      compensation: 'done',
      owner: null,
    })
    expect(await ordersIn(ctx)).toEqual([0, 0])
    expect(await preparedGids(ctx)).toEqual([])
    expect((await runDistributed(ctx, 'order_1', specOf(log))).state).toBe('committed')
  })

  it('does not compensate what failed while it was being staged', async () => {
    const { ctx } = await arrange()
    const log = newLog()
    const failing = specOf(log, { stage: (tx) => tx`select 1/0` })
    await expect(runDistributed(ctx, 'order_1', failing)).rejects.toThrow('division by zero')
    expect(log.undone).toEqual([])
    expect(await rowOf(ctx, 'order_1')).toMatchObject({ compensation: 'none' })
  })

  it('is refused while another run of the name lives', async () => {
    const { ctx, other } = await arrange()
    const log = newLog()
    const spec = specOf(log, {
      effects: async (context) => {
        log.effects.push(context)
        await expect(runDistributed(other, 'order_1', specOf(log))).rejects.toMatchObject({
          code: 'HOLDFAST_NAME_IN_USE',
        })
        await expect(runDistributed(ctx, 'order_1', specOf(log))).rejects.toMatchObject({
          code: 'HOLDFAST_NAME_IN_USE',
        })
      },
    })
    await runDistributed(ctx, 'order_1', spec)
    expect(log.effects).toHaveLength(1)
  })

  it('is not committed by name while its effects run', async () => {
    const { ctx, other } = await arrange()
    const log = newLog()
    const spec = specOf(log, {
      effects: async () => {
        await expect(commitDistributed(other, 'order_1')).rejects.toMatchObject({
          code: 'HOLDFAST_NAME_IN_USE',
        })
        expect(await ordersIn(ctx)).toEqual([0, 0])
        throw new Error('refused')
      },
    })
    await expect(runDistributed(ctx, 'order_1', spec)).rejects.toThrow('refused')
    expect(await rowOf(ctx, 'order_1')).toMatchObject({ status: 'rolled_back' })
  })

  it('is resumed by another process, with the same key and what was staged, when its process is gone', async () => {
    const { ctx, other } = await arrange()
    const log = newLog()
    await diesInEffects(ctx, 'order_1', log)
    const ran = await runDistributed(other, 'order_1', specOf(log))
    expect(ran.state).toBe('committed')
    expect(new Set(log.effects.map((e) => e.idempotencyKey))).toEqual(new Set([ran.attempt]))
    expect(log.effects[1]?.staged).toEqual({ primary: { at: '1970-01-01T00:00:00.000Z' } })
    expect(await ordersIn(ctx)).toEqual([1, 1])
  })

  it('is not taken over from a transaction that was begun by hand', async () => {
    const { ctx, other } = await arrange()
    const { beginDistributed } = await import('../../src/jobs/begin.ts')
    await beginDistributed(ctx, 'by-hand', async () => null)
    await expect(runDistributed(other, 'by-hand', specOf(newLog()))).rejects.toMatchObject({
      code: 'HOLDFAST_NAME_IN_USE',
    })
    await rollbackDistributed(ctx, 'by-hand', 'test')
  })

  it('aborts the signal before the deadline', async () => {
    const { ctx } = await arrange()
    const log = newLog()
    const spec = specOf(log, {
      timeoutMs: 400,
      effects: ({ signal: limit }) =>
        new Promise((_, reject) => {
          limit.addEventListener('abort', () => reject(limit.reason as Error))
        }),
    })
    await expect(runDistributed(ctx, 'order_1', spec)).rejects.toThrow('the deadline is near')
    expect(log.undone).toHaveLength(1)
    expect(await preparedGids(ctx)).toEqual([])
  })

  it('does not abort the signal of one that has more time than a timer of Node', async () => {
    const { ctx } = await arrange()
    const aborted: boolean[] = []
    const spec = specOf(newLog(), {
      deadlineMs: 60 * 24 * 60 * 60 * 1000,
      effects: async ({ signal }) => {
        // What Node takes for a millisecond has passed after this one.
        await new Promise((resolve) => setTimeout(resolve, 20))
        aborted.push(signal.aborted)
      },
    })
    expect(await runDistributed(ctx, 'order_1', spec)).toMatchObject({ state: 'committed' })
    expect(aborted).toEqual([false])
  })

  it('aborts the signal when the lease is lost', async () => {
    const urls = await newDatabases()
    const ctx = await openContext(urls, undefined, { leaseMs: 300 })
    const spec: RunSpec<unknown, unknown> = {
      stage: async () => null,
      effects: async ({ signal: limit }) => {
        // Renewals fail from here on.
        await ctx.databases.primary.sql`alter function holdfast.renew_lease rename to gone`
        await new Promise((resolve) => limit.addEventListener('abort', resolve))
        await ctx.databases.primary.sql`alter function holdfast.gone rename to renew_lease`
        throw limit.reason
      },
    }
    await expect(runDistributed(ctx, 'order_1', spec)).rejects.toThrow('the lease was lost')
    expect(await preparedGids(ctx)).toEqual([])
  })

  it('whose effects come back after the rollback is told so, and what they did is compensated once more', async () => {
    const { ctx, other } = await arrange()
    const log = newLog()
    const spec = specOf(log, {
      effects: async (context) => {
        log.effects.push(context)
        await rollbackDistributed(other, 'order_1', 'customer cancelled')
        // The run lives, so nobody compensates yet.
        other.operations.set('order', { compensate: () => Promise.reject(new Error('too early')) })
        expect(await dueCompensations(other)).toEqual([])
        expect(await rowOf(ctx, 'order_1')).toMatchObject({ status: 'rolled_back', compensation: 'due' })
      },
    })
    await expect(runDistributed(ctx, 'order_1', spec)).rejects.toThrow(RolledBackError)
    expect(log.undone).toHaveLength(1)
    expect(await rowOf(ctx, 'order_1')).toMatchObject({ compensation: 'done', owner: null })
  })

  it('whose lease ran out is compensated by another process, and again when its effects come back', async () => {
    const { ctx, other } = await arrange()
    const log = newLog()
    const held = deferred<void>()
    const entered = deferred<void>()
    const spec = specOf(log, {
      effects: async () => {
        entered.resolve()
        await held.promise
      },
    })
    const zombie = runDistributed(ctx, 'order_1', spec)
    zombie.catch(() => undefined)
    await entered.promise
    await expireLease(ctx)
    await ctx.databases.primary.sql`
      update holdfast.distributed_transactions set deadline = clock_timestamp() - interval '1 second'`
    expect(await recover(other)).toMatchObject({ rolledBack: 1 })
    other.operations.set('order', { compensate: ({ attempt }) => void log.undone.push(`first ${attempt}`) })
    const [due] = await dueCompensations(other)
    expect(await compensate(other, due?.attempt ?? '', signal)).toBe('done')
    expect(await rowOf(ctx, 'order_1')).toMatchObject({ status: 'cleaned_up', compensation: 'done' })
    held.resolve()
    await expect(zombie).rejects.toThrow(RolledBackError)
    expect(await dueCompensations(ctx)).toEqual([])
    expect(log.undone.map((key) => key.split(' ')[0])).toEqual([
      'first',
      expect.stringContaining(':compensate'),
    ])
  })

  it('that another process took over decides nothing any more', async () => {
    const { ctx, other } = await arrange()
    const log = newLog()
    const [held, entered] = [deferred<void>(), deferred<void>()]
    const failing = specOf(log, {
      effects: async () => {
        entered.resolve()
        await held.promise
        throw new Error('too late to matter')
      },
    })
    const zombie = runDistributed(ctx, 'order_1', failing)
    zombie.catch(() => undefined)
    await entered.promise
    await expireLease(ctx)
    const heir = specOf(log, {
      effects: async () => {
        // The zombie's effects fail while the heir's run: it must not roll back what is the heir's now.
        held.resolve()
        await expect(zombie).rejects.toThrow('too late to matter')
        expect(await rowOf(ctx, 'order_1')).toMatchObject({ status: 'pending', owner: other.lease.id })
      },
    })
    expect((await runDistributed(other, 'order_1', heir)).state).toBe('committed')
    expect(log.undone).toEqual([])
    expect(await ordersIn(ctx)).toEqual([1, 1])
  })

  it('that another process took over does not commit when its effects come back, and is told', async () => {
    const { ctx, other } = await arrange()
    const log = newLog()
    const [held, entered] = [deferred<void>(), deferred<void>()]
    const slow = specOf(log, {
      effects: async () => {
        entered.resolve()
        await held.promise
      },
    })
    const zombie = runDistributed(ctx, 'order_1', slow)
    zombie.catch(() => undefined)
    await entered.promise
    await expireLease(ctx)
    const heir = specOf(log, {
      effects: async () => {
        held.resolve()
        await expect(zombie).rejects.toMatchObject({ code: 'HOLDFAST_FENCED' })
        throw new Error('refused')
      },
    })
    await expect(runDistributed(other, 'order_1', heir)).rejects.toThrow('refused')
    expect(await ordersIn(ctx)).toEqual([0, 0])
    expect(await rowOf(ctx, 'order_1')).toMatchObject({ status: 'rolled_back', compensation: 'done' })
  })

  it('taken over while recovery looks is not aborted by it', async () => {
    const { ctx, other } = await arrange()
    const log = newLog()
    await diesInEffects(ctx, 'order_1', log)
    await ctx.databases.primary.sql`
      update holdfast.distributed_transactions set deadline = clock_timestamp() - interval '1 second'`
    const third = await openContext({
      primary: other.databases.primary.url,
      billing: other.databases.get('billing').url,
    })
    const [held, entered] = [deferred<void>(), deferred<void>()]
    let heir: Promise<unknown> = Promise.resolve()
    watchSteps({
      steps: new Set(['recovery.listed']),
      reached: async () => {
        // Recovery has read the row: past its deadline, its owner gone. Now it is taken over.
        const spec = specOf(log, {
          effects: async () => {
            entered.resolve()
            await held.promise
          },
        })
        heir = runDistributed(other, 'order_1', spec)
        await entered.promise
      },
    })
    expect(await recover(third).finally(() => watchSteps(undefined))).toMatchObject({ left: 1 })
    held.resolve()
    expect(await heir).toMatchObject({ state: 'committed' })
  })

  it('whose last preparing was taken over leaves a compensation that somebody can do', async () => {
    const { ctx, other } = await arrange()
    const log = newLog()
    other.operations.set('order', { compensate: ({ attempt }) => void log.undone.push(attempt) })
    let heir: Promise<unknown> = Promise.resolve()
    watchSteps({
      steps: new Set(['begin.prepared-all']),
      reached: async () => {
        watchSteps(undefined)
        await expireLease(ctx)
        heir = runDistributed(other, 'order_1', specOf(log))
        await heir
      },
    })
    // The heir aborted what was being staged, and staged and committed an attempt of its own.
    await expect(
      runDistributed(ctx, 'order_1', specOf(log)).finally(() => watchSteps(undefined)),
    ).rejects.toMatchObject({ code: 'HOLDFAST_ROLLED_BACK' })
    expect(await heir).toMatchObject({ state: 'committed' })
    expect(await ordersIn(ctx)).toEqual([1, 1])
    const owners = await ctx.databases.primary.sql`
      select status, owner, compensation from holdfast.distributed_transactions order by created_at`
    expect(owners).toEqual([
      { status: 'rolled_back', owner: null, compensation: 'none' },
      { status: 'committed', owner: null, compensation: 'none' },
    ])
    expect(await preparedGids(ctx)).toEqual([])
  })

  it('needs an operation to compensate by', async () => {
    const { ctx } = await arrange()
    const { operation: _, ...anonymous } = specOf(newLog())
    await expect(runDistributed(ctx, 'order_1', anonymous)).rejects.toMatchObject({
      code: 'HOLDFAST_INVALID_CONFIG',
    })
  })
})

describe('compensation', () => {
  it('that has no answer is aborted at its limit, and due again', async () => {
    const { ctx } = await arrange()
    const spec = specOf(newLog(), {
      effects: () => Promise.reject(new Error('refused')),
      compensate: () => Promise.reject(new Error('refund service down')),
    })
    await expect(runDistributed(ctx, 'order_1', spec)).rejects.toThrow('refused')
    const { sql } = ctx.databases.primary
    await sql`update holdfast.distributed_transactions set compensate_after = clock_timestamp()`
    const [due] = await dueCompensations(ctx)
    ctx.operations.set('order', {
      compensate: async (context) => {
        const aborted = new Promise<void>((_, reject) => {
          context.signal.addEventListener('abort', () => reject(context.signal.reason as Error))
        })
        await Promise.all([aborted, collectGarbage()])
      },
    })
    const stopping = new AbortController()
    const timer = setTimeout(() => stopping.abort(new Error('the limit did not come')), 10_000)
    expect(await compensate(ctx, due?.attempt ?? '', stopping.signal, 300)).toBe('failed')
    clearTimeout(timer)
    const [row] =
      await sql`select compensation, compensation_error as error from holdfast.distributed_transactions`
    expect(row).toEqual({ compensation: 'due', error: 'it took longer than 300 ms' })
  })

  it('is tried again later, and after ten failures an operator’s', async () => {
    const { ctx } = await arrange()
    const spec = specOf(newLog(), {
      effects: () => Promise.reject(new Error('refused')),
      compensate: () => Promise.reject(new Error('refund service down')),
    })
    await expect(runDistributed(ctx, 'order_1', spec)).rejects.toThrow('refused')
    expect(await rowOf(ctx, 'order_1')).toMatchObject({ compensation: 'due', failures: 1, owner: null })
    const { sql } = ctx.databases.primary
    expect(
      await sql`select compensate_after > updated_at + interval '0.5 s' as later from holdfast.distributed_transactions`,
    ).toEqual([{ later: true }])
    for (let failures = 2; failures <= 10; failures++) {
      await sql`update holdfast.distributed_transactions set compensate_after = clock_timestamp()`
      const [due] = await dueCompensations(ctx)
      await compensate(ctx, due?.attempt ?? '', signal)
      expect(await rowOf(ctx, 'order_1')).toMatchObject({ failures })
    }
    expect(await rowOf(ctx, 'order_1')).toMatchObject({
      compensation: 'failed',
      quarantine: 'its compensation failed 10 times, last: refund service down',
    })
  })

  it('is done by one of two that come at once', async () => {
    const { ctx, other } = await arrange()
    let undone = 0
    const undo = { compensate: () => void undone++ }
    const log = newLog()
    await diesInEffects(ctx, 'order_1', log)
    await rollbackDistributed(other, 'order_1', 'test')
    const third = await openContext({
      primary: other.databases.primary.url,
      billing: other.databases.get('billing').url,
    })
    other.operations.set('order', undo)
    third.operations.set('order', undo)
    const [due] = await dueCompensations(other)
    const outcomes = await Promise.all([other, third].map((c) => compensate(c, due?.attempt ?? '', signal)))
    expect(outcomes.toSorted()).toEqual(['done', 'not-ours'])
    expect(undone).toBe(1)
  })

  it('that was under way when a run came back from its effects is done once more', async () => {
    const { ctx, other } = await arrange()
    const log = newLog()
    const [held, entered] = [deferred<void>(), deferred<void>()]
    const spec = specOf(log, {
      effects: async () => {
        entered.resolve()
        await held.promise
      },
    })
    const zombie = runDistributed(ctx, 'order_1', spec)
    zombie.catch(() => undefined)
    await entered.promise
    await expireLease(ctx)
    await rollbackDistributed(other, 'order_1', 'test')
    other.operations.set('order', {
      compensate: async () => {
        held.resolve()
        await expect(zombie).rejects.toThrow(RolledBackError)
      },
    })
    const [due] = await dueCompensations(other)
    expect(await compensate(other, due?.attempt ?? '', signal)).toBe('failed')
    const [again] = await dueCompensations(ctx)
    expect(await compensate(ctx, again?.attempt ?? '', signal)).toBe('done')
    expect(log.undone).toHaveLength(1)
  })

  it('is not due where nothing was registered for the operation', async () => {
    const { ctx } = await arrange()
    const { compensate: _, ...without } = specOf(newLog(), { effects: () => Promise.reject(new Error('no')) })
    await expect(runDistributed(ctx, 'order_1', without)).rejects.toThrow('no')
    expect(await rowOf(ctx, 'order_1')).toMatchObject({ compensation: 'none' })
  })

  it('waits for the rollback on every participant', async () => {
    const { ctx, other } = await arrange()
    const log = newLog()
    await diesInEffects(ctx, 'order_1', log)
    other.operations.set('order', { compensate: () => undefined })
    const seen: unknown[] = []
    watchSteps({
      steps: new Set(['rollback.fenced-one']),
      reached: async () => void seen.push(await dueCompensations(other)),
    })
    await rollbackDistributed(other, 'order_1', 'test').finally(() => watchSteps(undefined))
    expect(seen).toEqual([[], []])
    expect(await dueCompensations(other)).toHaveLength(1)
  })
})
