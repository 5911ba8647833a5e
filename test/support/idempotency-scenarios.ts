import assert from 'node:assert/strict'
import type { Step } from '../../src/db/steps.ts'
import type { JobContext } from '../../src/jobs/context.ts'
import { expireIdempotencyKeys } from '../../src/jobs/expire-idempotency-keys.ts'
import { idempotent } from '../../src/jobs/idempotent.ts'
import type { Scenario } from './scenarios.ts'

const signal = new AbortController().signal
const call = { scope: 'orders', key: 'k', fingerprint: { total: 5 } }

async function order(ctx: JobContext) {
  return idempotent(ctx, call, async (tx) => {
    const [row] = await tx<{ id: number }[]>`insert into orders (total) values (5) returning id`
    return { order: row?.id ?? 0 }
  })
}

async function tokenOf({ databases }: JobContext): Promise<number> {
  const [row] = await databases.primary.sql<{ token: string }[]>`select token from holdfast.idempotency_keys`
  return Number(row?.token)
}

/** A call with an idempotency key, made again by a client that heard nothing. */
export const completing: Scenario = {
  async arrange({ databases }) {
    await databases.primary.sql`create table orders (id int generated always as identity, total int not null)`
  },
  async act(ctx) {
    await order(ctx)
  },
  async finish(ctx) {
    const token = await tokenOf(ctx)
    const { sql } = ctx.databases.primary
    const abandoned = await sql`
      update holdfast.idempotency_keys set lease_until = clock_timestamp() where response is null`
    const again = await order(ctx)
    assert.equal(again.replayed, abandoned.count === 0)
    if (!again.replayed) assert.ok((await tokenOf(ctx)) > token, 'whoever takes over has a higher token')
  },
  async check(ctx, killedAt: Step) {
    const orders = await ctx.databases.primary.sql<{ id: number }[]>`select id from orders`
    assert.equal(orders.length, 1)
    assert.deepEqual(await order(ctx), { response: { order: orders[0]?.id }, replayed: true })
    const [row] = await ctx.databases.primary.sql<
      { token: string }[]
    >`select token from holdfast.idempotency_keys`
    assert.equal(row?.token === '1', killedAt === 'idempotency.completed')
  },
}

/** The expiry job, in doubt: it goes forward. */
export const expiring: Scenario = {
  async arrange({ databases }) {
    await databases.primary.sql`
      insert into holdfast.idempotency_keys (scope, key, token, fingerprint, lease_until, expires_at, response)
      select 'orders', 'k' || n, nextval('holdfast.idempotency_token'), '', clock_timestamp(),
        clock_timestamp() + make_interval(hours => case when n <= 5 then -1 else 1 end), '1'
      from generate_series(1, 8) n`
  },
  async act(ctx) {
    await expireIdempotencyKeys(ctx, signal, 2)
  },
  finish: (ctx) => expiring.act(ctx),
  async check({ databases }) {
    const { sql } = databases.primary
    assert.equal((await sql`select from holdfast.idempotency_keys`).length, 3)
    const runs = await sql`select from holdfast.job_runs where job = 'expire-idempotency-keys'`
    assert.equal(runs.length, 1)
  },
}
