import { afterEach, describe, expect, it } from 'vitest'
import {
  CommittedError,
  InvalidConfigError,
  InvalidNameError,
  InvalidPayloadError,
  NameInUseError,
  NotPreparedError,
  RolledBackError,
  UnknownParticipantError,
  UnknownTransactionError,
} from '../../src/db/errors.ts'
import { isConnectionLoss, isPassing, sqlstateOf } from '../../src/db/sqlstate.ts'
import type { Tx } from '../../src/db/tx.ts'
import { beginDistributed } from '../../src/jobs/begin.ts'
import { commitDistributed, rollbackDistributed } from '../../src/jobs/coordinator.ts'
import { newDatabases, openContext } from '../support/database.ts'
import { preparedGids } from '../support/prepared-gids.ts'

// One participant in the same cluster as primary, one in another.
const ctx = await openContext(await newDatabases({ stock: 'east', billing: 'west' }))
const { primary } = ctx.databases
for (const participant of ctx.databases.all) {
  await participant.sql`create table orders (id int primary key, ref int references orders deferrable initially deferred)`
}

let serial = 0
const insert = (id: number) => async (tx: Tx) => {
  await tx`insert into orders values (${id})`
  return { id }
}
const count = async (id: number) =>
  Promise.all(ctx.databases.all.map(async (p) => (await p.sql`select from orders where id = ${id}`).length))

afterEach(async () => {
  // Whatever went wrong: nothing is left prepared, no connection stays in a transaction, the pool serves the next.
  expect(await preparedGids(ctx)).toEqual([])
  for (const p of ctx.databases.all) {
    // A backend whose connection was just given up may not have noticed it yet.
    await expect
      .poll(
        () =>
          p.sql`select state, query from pg_stat_activity where datname = current_database() and state like 'idle in%'`,
        { interval: 20 },
      )
      .toEqual([])
  }
  const name = `after_${++serial}`
  await beginDistributed(ctx, name, async (tx) => tx`select 1`.then(() => null))
  await commitDistributed(ctx, name)
})

describe('begin, commit, rollback', () => {
  it('holds the work prepared and invisible on all databases, then commits it everywhere', async () => {
    const begun = await beginDistributed(ctx, 'order_1', {
      primary: insert(1),
      stock: insert(1),
      billing: insert(1),
    })
    expect(begun).toMatchObject({
      name: 'order_1',
      staged: { primary: { id: 1 }, stock: { id: 1 }, billing: { id: 1 } },
    })
    expect(await preparedGids(ctx)).toHaveLength(3)
    expect(await count(1)).toEqual([0, 0, 0])
    expect(await commitDistributed(ctx, 'order_1')).toEqual({ state: 'committed', finished: 3, of: 3 })
    expect(await count(1)).toEqual([1, 1, 1])
    expect(await commitDistributed(ctx, 'order_1')).toEqual({ state: 'committed', finished: 3, of: 3 })
    await expect(rollbackDistributed(ctx, 'order_1', 'late')).rejects.toThrow(CommittedError)
    await expect(beginDistributed(ctx, 'order_1', insert(1))).rejects.toThrow(NameInUseError)
  })

  it('rolls back everywhere, stays so, and frees the name', async () => {
    await beginDistributed(ctx, 'order_2', { primary: insert(2), billing: insert(2) })
    await expect(beginDistributed(ctx, 'order_2', insert(2))).rejects.toThrow('Commit it, roll it back')
    expect(await rollbackDistributed(ctx, 'order_2', 'cancelled')).toEqual({
      state: 'rolled_back',
      finished: 2,
      of: 2,
    })
    expect(await rollbackDistributed(ctx, 'order_2', 'again')).toMatchObject({ state: 'rolled_back' })
    await expect(commitDistributed(ctx, 'order_2')).rejects.toThrow(RolledBackError)
    await expect(commitDistributed(ctx, 'order_2')).rejects.toThrow('cancelled')
    expect(await count(2)).toEqual([0, 0, 0])
    await beginDistributed(ctx, 'order_2', insert(2))
    await commitDistributed(ctx, 'order_2')
    expect(await count(2)).toEqual([1, 0, 0])
  })

  it('lets one of two that commit and roll back at once win, and all databases follow it', async () => {
    for (let id = 100; id < 110; id++) {
      const name = `race_${id}`
      await beginDistributed(ctx, name, { primary: insert(id), billing: insert(id) })
      const [commit, rollback] = await Promise.allSettled([
        commitDistributed(ctx, name),
        rollbackDistributed(ctx, name, 'raced'),
      ])
      expect([commit.status, rollback.status].toSorted()).toEqual(['fulfilled', 'rejected'])
      const kept = commit.status === 'fulfilled' ? 1 : 0
      expect(await count(id)).toEqual([kept, 0, kept])
    }
  })

  it('records who did what', async () => {
    await beginDistributed(ctx, 'order_3', insert(3), { correlationId: 'cart-9' })
    await commitDistributed(ctx, 'order_3')
    const events = await primary.sql`
      select event, actor, correlation_id from holdfast.transaction_events where name = 'order_3' order by id`
    expect(events).toEqual(
      ['started', 'pending', 'committing', 'committed'].map((event) => ({
        event,
        actor: ctx.lease.id,
        correlation_id: 'cart-9',
      })),
    )
  })

  it('never lets a recorded decision be turned round, not even by SQL', async () => {
    await beginDistributed(ctx, 'order_4', insert(4))
    await commitDistributed(ctx, 'order_4')
    await expect(
      primary.sql`update holdfast.distributed_transactions set decision = 'abort' where name = 'order_4'`,
    ).rejects.toThrow('is final')
  })
})

describe('bad input', () => {
  it.each(['', 'x'.repeat(129), "a'b", 'a;b', 'ä', 'jane@example.com'])(
    'refuses the name %j',
    async (name) => {
      await expect(beginDistributed(ctx, name, insert(50))).rejects.toThrow(InvalidNameError)
      await expect(commitDistributed(ctx, name)).rejects.toThrow(InvalidNameError)
      await expect(rollbackDistributed(ctx, name, 'x')).rejects.toThrow(InvalidNameError)
    },
  )

  it('refuses a database that is not configured, and work that is none', async () => {
    await expect(beginDistributed(ctx, 'bad_1', { warehouse: insert(51) })).rejects.toThrow(
      UnknownParticipantError,
    )
    await expect(beginDistributed(ctx, 'bad_1', {})).rejects.toThrow(InvalidConfigError)
    await expect(beginDistributed(ctx, 'bad_1', { primary: 7 as never })).rejects.toThrow(InvalidConfigError)
  })

  it('knows no transaction that was never begun', async () => {
    await expect(commitDistributed(ctx, 'never_begun')).rejects.toThrow(UnknownTransactionError)
  })

  const cannotPrepare: [what: string, work: (tx: Tx) => Promise<unknown>, state: string, advice: RegExp][] = [
    ['swallows its own SQL error', (tx) => tx`select 1/0`.catch(() => 0), '25P02', /savepoint/],
    ['uses NOTIFY', (tx) => tx`notify somebody`, '0A000', /NOTIFY/],
    ['uses a temporary table', (tx) => tx.unsafe('create temporary table t (i int)'), '0A000', /temporary/],
    ['breaks a deferred constraint', (tx) => tx`insert into orders values (52, 999)`, '23503', /foreign key/],
    [
      'commits by itself',
      (tx) => tx.unsafe('insert into orders values (53); commit'),
      '',
      /ended its own transaction/,
    ],
    ['rolls back by itself', (tx) => tx.unsafe('rollback'), '', /ended its own transaction/],
    ['commits and chains', (tx) => tx.unsafe('commit and chain'), '', /ended its own transaction/],
  ]
  it.each(cannotPrepare)(
    'fails work that %s, on one and on two databases',
    async (_what, work, state, advice) => {
      for (const by of [{ primary: work }, { primary: insert(54), billing: work }]) {
        const error: unknown = await beginDistributed(ctx, `bad_${++serial}`, by).catch((e: unknown) => e)
        expect(error).toBeInstanceOf(NotPreparedError)
        expect((error as Error).message).toMatch(advice)
        if (state !== '') expect(sqlstateOf(error)).toBe(state)
      }
      expect(await count(54)).toEqual([0, 0, 0])
    },
  )

  it('quarantines work that committed by itself: an operator has to look at what escaped', async () => {
    const work = (tx: Tx) => tx.unsafe('insert into orders values (57); commit')
    await expect(beginDistributed(ctx, 'bad_5', work)).rejects.toThrow(NotPreparedError)
    const [row] =
      await primary.sql`select status, quarantine from holdfast.distributed_transactions where name = 'bad_5'`
    expect(row).toEqual({
      status: 'rolled_back',
      quarantine: expect.stringContaining('ended its own transaction'),
    })
  })

  it('leaves nothing in the session for the next: no role, no setting, no lock', async () => {
    await primary.sql`create role weak`
    const before = await beginDistributed(ctx, 'state_0', (tx) => tx`select current_user as who`)
    await beginDistributed(ctx, 'state_1', async (tx) => {
      await tx.unsafe(
        'grant all on schema holdfast, public to weak; grant all on all tables in schema holdfast to weak',
      )
      await tx`select set_config('statement_timeout', '77', false), set_config('app.tenant', '7', false), pg_advisory_lock(42)`
    })
    for (const name of ['state_0', 'state_1']) await commitDistributed(ctx, name)
    const after = await beginDistributed(ctx, 'state_2', async (tx) => {
      const [row] = await tx`select current_user as who, current_setting('statement_timeout') as timeout,
        coalesce(current_setting('app.tenant', true), '') as tenant`
      const locks = await tx`select 1 from pg_locks where locktype = 'advisory' and objid = 42`
      return { ...row, locks: locks.length }
    })
    await commitDistributed(ctx, 'state_2')
    expect(after.staged).toEqual({
      ...(before.staged as { who: string }[])[0],
      timeout: '0',
      tenant: '',
      locks: 0,
    })
    await primary.sql`drop owned by weak`
    await primary.sql`drop role weak`
  })

  it("passes on the work's own error", async () => {
    const own = new Error('no stock left')
    await expect(
      beginDistributed(ctx, 'bad_2', { primary: insert(55), billing: () => Promise.reject(own) }),
    ).rejects.toBe(own)
    expect(await count(55)).toEqual([0, 0, 0])
  })

  it('fails work that returns what JSON cannot carry', async () => {
    await expect(beginDistributed(ctx, 'bad_3', async () => ({ amount: 1n }))).rejects.toThrow(
      InvalidPayloadError,
    )
  })

  it('fails work whose first query has an undefined value with that, and at once', async () => {
    const work = async (tx: Tx) => tx`insert into orders values (${undefined as never})`
    await expect(
      beginDistributed(ctx, 'undefined_1', { primary: insert(60), billing: work }),
    ).rejects.toThrow('Undefined values are not allowed')
    expect(await count(60)).toEqual([0, 0, 0])
  })

  it('takes for a want of slots only what is one: a deferred trigger may want memory in the same words', async () => {
    await primary.sql.unsafe(`create table greedy (id int);
      create function want() returns trigger language plpgsql as $$
        begin raise 'out of shared memory' using errcode = '53200'; end $$;
      create constraint trigger want after insert on greedy deferrable initially deferred
        for each row execute function want()`)
    const greedy = beginDistributed(
      ctx,
      'greedy_1',
      async (tx) => void (await tx`insert into greedy values (1)`),
    )
    await expect(greedy).rejects.toThrow(NotPreparedError)
    await expect(greedy).rejects.toSatisfy(isPassing)
  })

  it('survives work whose connection is cut, at any moment', async () => {
    const work = async (tx: Tx) => {
      await tx`insert into orders values (56)`
      const [row] = await tx<{ pid: number }[]>`select pg_backend_pid() as pid`
      await primary.sql`select pg_terminate_backend(${row!.pid}, 5000)`
      await tx`select 1`
    }
    await expect(beginDistributed(ctx, 'bad_4', { primary: work, billing: insert(56) })).rejects.toSatisfy(
      isConnectionLoss,
    )
    expect(await count(56)).toEqual([0, 0, 0])
  })
})
