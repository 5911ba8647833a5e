import { once } from 'node:events'
import { createServer } from 'node:net'
import { describe, expect, it, onTestFinished } from 'vitest'
import { createClient } from '../../src/db/client.ts'
import { Databases } from '../../src/db/databases.ts'
import { InvalidConfigError } from '../../src/db/errors.ts'
import { migrate } from '../../src/db/migrate.ts'
import { appendEvents } from '../../src/db/outbox.ts'
import { watchSteps } from '../../src/db/steps.ts'
import { beginDistributed } from '../../src/jobs/begin.ts'
import type { JobContext } from '../../src/jobs/context.ts'
import { commitDistributed } from '../../src/jobs/coordinator.ts'
import { recover } from '../../src/jobs/recovery.ts'
import { sinkContext } from '../../src/jobs/sinks/sink-context.ts'
import { table } from '../../src/jobs/sinks/table.ts'
import { newDatabase, newDatabases, openContext } from '../support/database.ts'
import { preparedGids } from '../support/prepared-gids.ts'
import { Relays } from '../support/relays.ts'

const nothing = { committed: 0, rolledBack: 0, left: 0, failed: 0 }
const statusOf = async (ctx: JobContext, name: string) =>
  (
    await ctx.databases.primary.sql`select status from holdfast.distributed_transactions where name = ${name}`
  )[0]?.status

/** Stops the process's work at a step for ever, as if it had died there with its lease alive. */
async function stoppedAt(
  step: 'begin.prepared-all' | 'page.published',
  act: () => Promise<unknown>,
): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    watchSteps({
      steps: new Set([step]),
      reached: () => {
        watchSteps(undefined)
        resolve()
        return new Promise(() => undefined)
      },
    })
    act().then(() => reject(new Error('did not come by')), reject)
  })
}

describe('recovery', () => {
  it('leaves what a live process is staging, and what waits for its user', async () => {
    const urls = await newDatabases({ billing: 'west' })
    const [live, other] = [await openContext(urls), await openContext(urls)]
    const work = async () => null
    await stoppedAt('begin.prepared-all', () =>
      beginDistributed(live, 'staging', { primary: work, billing: work }),
    )
    await beginDistributed(live, 'waiting', work)
    expect(await recover(other)).toEqual({ ...nothing, left: 2 })
    expect(await recover(live)).toEqual({ ...nothing, left: 2 })
    expect(await preparedGids(live)).toHaveLength(3)
  })

  it('gives up what its own process no longer stages, although the lease lives', async () => {
    const ctx = await openContext(await newDatabases({ billing: 'west' }))
    const work = async () => null
    await stoppedAt('begin.prepared-all', () =>
      beginDistributed(ctx, 'given-up', { primary: work, billing: work }),
    )
    ctx.lease.running.clear()
    expect(await recover(ctx)).toEqual({ ...nothing, rolledBack: 1 })
    expect(await preparedGids(ctx)).toEqual([])
    await beginDistributed(ctx, 'given-up', work)
    await commitDistributed(ctx, 'given-up')
  })

  it('touches nothing that may involve a participant on an unconfirmed timeline, not even without a row', async () => {
    const ctx = await openContext(await newDatabases({ billing: 'west' }))
    const { sql } = ctx.databases.primary
    const work = async () => null
    await beginDistributed(ctx, 'paused', { primary: work, billing: work })
    await recover(ctx)
    await sql`update holdfast.timelines set timeline = timeline + 1 where participant = 'billing'`
    await sql`delete from holdfast.distributed_transactions`
    await sql`update holdfast.workers set lease_until = clock_timestamp() - interval '1 second'`
    expect(await recover(ctx)).toMatchObject({ rolledBack: 0, failed: 0 })
    expect(await preparedGids(ctx)).toHaveLength(2)
    await sql`update holdfast.timelines set timeline = timeline - 1 where participant = 'billing'`
    await recover(ctx)
    expect(await preparedGids(ctx)).toEqual([])
  })

  it('rolls back what is past its deadline, whoever holds it', async () => {
    const urls = await newDatabases()
    const [live, other] = [await openContext(urls), await openContext(urls)]
    await beginDistributed(live, 'late', async () => null)
    await stoppedAt('begin.prepared-all', () => beginDistributed(live, 'later', async () => null))
    await live.databases.primary.sql`
      update holdfast.distributed_transactions set deadline = clock_timestamp() - interval '1 second'`
    expect(await recover(other)).toEqual({ ...nothing, rolledBack: 2 })
    expect(await statusOf(live, 'late')).toBe('cleaned_up')
    expect(await preparedGids(live)).toEqual([])
  })

  it('reports what was committed by hand against an abort, and forgets no decision', async () => {
    const ctx = await openContext(await newDatabases())
    await beginDistributed(ctx, 'by-hand', async () => null)
    const [gid] = await preparedGids(ctx)
    await ctx.databases.primary.sql.unsafe(`commit prepared '${gid}'`)
    await ctx.databases.primary.sql`
      update holdfast.distributed_transactions set status = 'rolling_back', decision = 'abort'`
    expect(await recover(ctx)).toEqual({ ...nothing, left: 1 })
    const [row] = await ctx.databases.primary
      .sql`select decision, quarantine from holdfast.distributed_transactions`
    expect(row).toEqual({ decision: 'abort', quarantine: expect.stringContaining('committed by hand') })
    expect(await recover(ctx)).toEqual(nothing)
  })

  it('never touches gids of others', async () => {
    const ctx = await openContext(await newDatabases())
    const foreign = ['somebody-else', 'hf1/0000000000000000/f/primary/00000000000000000000000000000000/x']
    const stranger = createClient(ctx.databases.primary.url, { max: 1 })
    for (const [i, gid] of foreign.entries()) {
      await stranger.unsafe(`begin; create table foreign_${i} (); prepare transaction '${gid}-${Date.now()}'`)
    }
    await stranger.end()
    expect(await recover(ctx)).toEqual(nothing)
    const left = await preparedGids(ctx)
    expect(left).toHaveLength(2)
    for (const gid of left) await ctx.databases.primary.sql.unsafe(`rollback prepared '${gid}'`)
  })

  it('goes on while one database accepts connections and closes them at once', async () => {
    const broken = createServer((socket) => socket.destroy())
    broken.listen(0, '127.0.0.1')
    await once(broken, 'listening')
    onTestFinished(() => {
      broken.close()
    })
    const { port } = broken.address() as { port: number }
    const urls = await newDatabases({ billing: 'west' })
    const whole = await openContext(urls)
    const half = {
      ...whole,
      databases: new Databases({ ...urls, billing: `postgres://x@127.0.0.1:${port}/x` }),
    }
    await stoppedAt('begin.prepared-all', () => beginDistributed(whole, 'alone', async () => null))
    whole.lease.running.clear()
    expect(await recover(half)).toMatchObject({ rolledBack: 1 })
    expect(await preparedGids(whole)).toEqual([])
    void half.databases.end()
  })
})

describe('a page whose target committed before its cursor', () => {
  async function pageInDoubt() {
    const urls = await newDatabases({ billing: 'west' })
    const [dead, heir] = [await openContext(urls), await openContext(urls)]
    const { databases } = dead
    const sink = await table({ database: 'billing' }).open(sinkContext(dead, 'inbox'))
    await databases.primary.transaction((tx) => appendEvents(tx, { type: 'a', data: 1 }))
    const relay = new Relays(dead, sink, { sink: 'inbox', pageSize: 10, wants: () => true })
    await stoppedAt('page.published', () => relay.drain(new AbortController().signal))
    await databases.primary
      .sql`update holdfast.workers set lease_until = clock_timestamp() where id = ${dead.lease.id}`
    return { urls, heir }
  }

  it('is committed by a worker that knows the target', async () => {
    const { heir } = await pageInDoubt()
    expect(await recover(heir)).toEqual({ ...nothing, committed: 1 })
  })

  it('is left by a worker whose config lacks the target, not guessed', async () => {
    const { urls, heir } = await pageInDoubt()
    const lacking = { ...heir, databases: new Databases({ primary: urls.primary! }) }
    expect(await recover(lacking)).toEqual({ ...nothing, failed: 1 })
    await lacking.databases.end()
    expect(await recover(heir)).toEqual({ ...nothing, committed: 1 })
  })
})

describe('one database', () => {
  it('does not take part under two names', async () => {
    const url = await newDatabase()
    const other = await newDatabase()
    for (const urls of [
      { primary: url, billing: url },
      { primary: url, billing: other, stock: other },
    ]) {
      const databases = new Databases(urls)
      await expect(migrate(databases)).rejects.toThrow('two names for one database')
      await databases.end()
    }
  })

  it('is not its own table sink', async () => {
    const ctx = await openContext(await newDatabases())
    await expect(table({ database: 'primary' }).open(sinkContext(ctx, 'inbox'))).rejects.toThrow(
      InvalidConfigError,
    )
  })
})
