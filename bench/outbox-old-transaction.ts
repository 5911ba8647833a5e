import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { startEmbedded } from '../src/db/embedded/server.ts'
import { type Bench, compare } from './measure.ts'
import { OutboxToRedis } from './outbox-to-redis.ts'

const database = 'bench_old_transaction'
const gid = 'somebody-else'

/** As many trickle through in small pages first, so that positions, snapshots and dead rows pile up. */
const ageing = { events: 120_000, perDrain: 200 }

/**
 * Draining while a prepared transaction that has appended an event is open since before all others, against the same
 * without it. The old transaction holds back the snapshots of its whole server, hence two servers with the same history.
 */
export const outboxOldTransaction: Bench = async (servers, quick) => {
  const events = quick ? 20_000 : 100_000
  const dir = await mkdtemp(join(tmpdir(), 'holdfast-bench-old-'))
  const other = await startEmbedded({ dir })
  const held = await OutboxToRedis.open({ ...servers, postgres: other.url }, `${database}_held`)
  const free = await OutboxToRedis.open(servers, database)
  try {
    await prepareForeign(held)
    for (let i = 0; i < ageing.events; i += ageing.perDrain) {
      for (const outbox of [held, free]) {
        await outbox.append(ageing.perDrain)
        await outbox.drain(ageing.perDrain)
      }
    }
    const round = (outbox: OutboxToRedis) => async () => {
      await outbox.append(events)
      return outbox.drain(events)
    }
    const row = await compare(
      { name: 'with an old prepared transaction', unit: 'events/s', bar: 0.9, rounds: quick ? 5 : 9 },
      round(held),
      round(free),
    )
    await endForeign(held)
    return [row]
  } finally {
    await held.close()
    await free.close()
    await other.release()
    await rm(dir, { recursive: true, force: true })
  }
}

async function prepareForeign({ ctx }: OutboxToRedis): Promise<void> {
  const { staging } = ctx.databases.primary
  const connection = await staging.acquire()
  try {
    await connection.send('begin')
    await connection.send(`select holdfast.publish('never.committed', 'old', '{}'::jsonb)`)
    await connection.send(`prepare transaction '${gid}'`)
  } finally {
    await staging.release(connection, true)
  }
}

/** It must still be there: otherwise nothing was measured. */
async function endForeign({ ctx }: OutboxToRedis): Promise<void> {
  await ctx.databases.primary.sql.unsafe(`rollback prepared '${gid}'`)
}
