import { afterAll, describe, expect, it } from 'vitest'
import { HoldfastError, NotPreparedError, RolledBackError } from '../../src/db/errors.ts'
import { isConnectionLoss } from '../../src/db/sqlstate.ts'
import type { Tx } from '../../src/db/tx.ts'
import { beginDistributed } from '../../src/jobs/begin.ts'
import { compensate, dueCompensations } from '../../src/jobs/compensate.ts'
import type { JobContext } from '../../src/jobs/context.ts'
import { commitDistributed, rollbackDistributed } from '../../src/jobs/coordinator.ts'
import { recover } from '../../src/jobs/recovery.ts'
import { runDistributed } from '../../src/jobs/run-distributed.ts'
import { newDatabases, openContext } from '../support/database.ts'
import { preparedGids } from '../support/prepared-gids.ts'
import { type Statement, TcpProxy, type When } from '../support/tcp-proxy.ts'

/**
 * The connection is cut at each statement of the protocol, in each way that a network can. Whatever the caller was told,
 * everything comes to one outcome on all databases, the data says which, and the process goes on with the same pools.
 */
type Kind = { what: string; match: (statement: Statement, earlier: readonly Statement[]) => boolean }

const says = (what: string, text: RegExp, parameter?: string): Kind => ({
  what,
  match: (statement) =>
    text.test(statement.text) && (parameter === undefined || statement.parameters.includes(parameter)),
})
/** The COMMIT of the transaction in which such a statement ran: the moment at which it counts. */
const commitOf = (kind: Kind): Kind => ({
  what: `COMMIT of ${kind.what}`,
  match: ({ text }, earlier) => text === 'COMMIT' && earlier.some((statement) => kind.match(statement, [])),
})
const step = (to: string) =>
  says(`the write of ${to}`, /^\s*with moved as \(\s*update holdfast\.distributed_transactions/, to)

const row = says('the insert of the row', /insert into holdfast\.distributed_transactions/)
/** By hand; a run inserts it in a statement that commits by itself. */
const commitOfRow = commitOf(row)
/** A rollback reads the row by its attempt only after it has written it. */
const readAgain = says(
  'the reading of the row after the decision',
  /from holdfast\.distributed_transactions where attempt =/,
)
const staging = [
  says('BEGIN', /^BEGIN.*holdfast\.attempt/s),
  says('the work', /^insert into orders/),
  says('PREPARE TRANSACTION', /PREPARE TRANSACTION/),
]
const fence = says('the fence', /insert into holdfast\.transaction_markers/)
const endOfRun = says(
  'the end of the run',
  /update holdfast\.distributed_transactions.*\bowner = .*compensation = case when \$\d and decision/s,
)
const rowKinds = [row, commitOfRow]

type Act = 'commit' | 'rollback'
const ofPrimary: Record<'begin' | Act, Kind[]> = {
  begin: [...rowKinds, step('pending')],
  commit: [step('committing'), step('committed')],
  rollback: [step('rolling_back'), readAgain, step('rolled_back')],
}
const ofEach: Record<'begin' | Act, Kind[]> = {
  begin: staging,
  commit: [says('COMMIT PREPARED', /^COMMIT PREPARED/)],
  rollback: [says('ROLLBACK PREPARED', /^ROLLBACK PREPARED/), fence, commitOf(fence)],
}
const whens: When[] = ['before', 'after', 'at-once']

/** A process behind proxies, another that reaches the databases directly, and both over the same databases. */
async function openPair(others: Record<string, 'east' | 'west'>) {
  const urls = await newDatabases(others)
  const heir = await openContext(urls)
  const proxies: Record<string, TcpProxy> = {}
  for (const [name, url] of Object.entries(urls)) proxies[name] = await TcpProxy.open(url)
  afterAll(async () => {
    for (const proxy of Object.values(proxies)) await proxy.close()
  })
  const through = Object.entries(proxies).map(([name, proxy]) => [name, proxy.url] as const)
  // It renews no lease while the file runs: what a test lets run out stays so, and the other takes over.
  const ctx = await openContext(Object.fromEntries(through), undefined, { leaseMs: 3_600_000 })
  for (const participant of heir.databases.all)
    await participant.sql`create table orders (id int primary key)`
  await heir.databases.primary.sql`
    create table ledger (key text primary key, id int not null, undone boolean not null default false)`
  return { ctx, heir, proxies }
}
type Pair = Awaited<ReturnType<typeof openPair>>

const workOn = (ctx: JobContext, id: number) =>
  Object.fromEntries(
    ctx.databases.names.map((name) => [
      name,
      async (tx: Tx) => {
        await tx`insert into orders values (${id})`
      },
    ]),
  )

/** Success, or an error that says what kind it is. */
async function outcomeOf<T>(
  act: Promise<T>,
): Promise<{ value: T; error?: undefined } | { error: Error; value?: undefined }> {
  try {
    return { value: await act }
  } catch (error) {
    expect(error).toBeInstanceOf(Error)
    if (!(error instanceof HoldfastError) && !isConnectionLoss(error)) throw error
    return { error: error as Error }
  }
}

type Row = { status: string; decision: string | null; owner: string | null; quarantine: string | null }

async function rowsOf(heir: JobContext, name: string): Promise<Row[]> {
  const rows = await heir.databases.primary.sql<Row[]>`
    select status, decision, owner, quarantine from holdfast.distributed_transactions
    where name = ${name} order by created_at`
  return rows.map((one) => ({ ...one }))
}

/** The others' leases have run out, as if they had died. */
async function expireOthers(heir: JobContext): Promise<void> {
  await heir.databases.primary.sql`
    update holdfast.workers set lease_until = clock_timestamp() - interval '1 second' where id <> ${heir.lease.id}`
}

/** Recovery by another process until nothing of the name is under way, other than what waits for its user. */
async function settle({ heir }: Pair, name: string): Promise<void> {
  await heir.lease.hold()
  await expireOthers(heir)
  await expect
    .poll(
      async () => {
        expect((await recover(heir)).failed).toBe(0)
        const last = (await rowsOf(heir, name)).at(-1)
        return (
          last === undefined || ['pending', 'committed', 'rolled_back', 'cleaned_up'].includes(last.status)
        )
      },
      { interval: 20 },
    )
    .toBe(true)
}

async function keptOn(heir: JobContext, id: number): Promise<number[]> {
  return Promise.all(
    heir.databases.all.map(async (p) => (await p.sql`select from orders where id = ${id}`).length),
  )
}

let serial = 0

/** One outcome everywhere, nothing prepared, and the process that was cut serves the next call. */
async function check(pair: Pair, name: string, id: number, kept: boolean): Promise<void> {
  const { ctx, heir } = pair
  expect(await keptOn(heir, id)).toEqual(heir.databases.all.map(() => (kept ? 1 : 0)))
  await expect.poll(async () => [...(await preparedGids(heir))], { interval: 20 }).toEqual([])
  for (const { status, decision, quarantine } of await rowsOf(heir, name)) {
    expect(['committed', 'rolled_back', 'cleaned_up']).toContain(status)
    expect(decision).toBe(status === 'committed' ? 'commit' : 'abort')
    expect(quarantine).toBe(null)
  }
  const next = ++serial
  await beginDistributed(ctx, `next_${next}`, workOn(ctx, -next))
  expect(await commitDistributed(ctx, `next_${next}`)).toMatchObject({ state: 'committed' })
  expect(await keptOn(heir, -next)).toEqual(heir.databases.all.map(() => 1))
  for (const participant of heir.databases.all) {
    await expect
      .poll(
        async () =>
          (
            await participant.sql`
            select 1 from pg_stat_activity
            where datname = current_database() and state like 'idle in%' and state_change < clock_timestamp()`
          ).length,
        { interval: 20 },
      )
      .toBe(0)
  }
}

const layouts = [
  { databases: 1, others: {} as Record<string, 'west'>, sides: ['primary'] },
  { databases: 2, others: { billing: 'west' } as Record<string, 'west'>, sides: ['primary', 'billing'] },
]

describe.each(layouts)('cut, with $databases database(s)', async ({ others, sides }) => {
  const pair = await openPair(others)
  const { ctx, heir, proxies } = pair
  const cases = (during: 'begin' | Act) =>
    sides.flatMap((side) => {
      const kinds = [...ofEach[during], ...(side === 'primary' ? ofPrimary[during] : [])]
      return kinds.flatMap((kind) => whens.map((when) => ({ side, kind, what: kind.what, when })))
    })

  describe.each(cases('begin'))('at $what on $side, $when', ({ side, kind, when }) => {
    it('begin fails or succeeds, then its name can be finished', async () => {
      const id = ++serial
      const name = `begin_${id}`
      const struck = proxies[side]!.arm({ match: kind.match, when })
      const begun = await outcomeOf(beginDistributed(ctx, name, workOn(ctx, id)))
      await struck
      // What fails is rolled back by the process that began it; only a row that came after that is left to recovery.
      if (begun.error && !rowKinds.includes(kind)) {
        await expect
          .poll(async () => (await rowsOf(heir, name)).at(-1)?.status, { interval: 20 })
          .toBe('rolled_back')
      }
      await settle(pair, name)
      const status = (await rowsOf(heir, name)).at(-1)?.status
      if (begun.error) expect([undefined, 'rolled_back']).toContain(status)
      else expect(status).toBe('pending')
      // What failed was rolled back and the name is free; what succeeded is there to be committed.
      if (begun.error) {
        expect(await keptOn(heir, id)).toEqual(heir.databases.all.map(() => 0))
        await beginDistributed(ctx, name, workOn(ctx, id))
      }
      expect(await commitDistributed(ctx, name)).toMatchObject({ state: 'committed' })
      await check(pair, name, id, true)
    })
  })

  describe.each(cases('commit'))('at $what on $side, $when', ({ side, kind, when }) => {
    it('commit comes to its end on all', async () => {
      const id = ++serial
      const name = `commit_${id}`
      await beginDistributed(ctx, name, workOn(ctx, id))
      const struck = proxies[side]!.arm({ match: kind.match, when })
      const first = await outcomeOf(commitDistributed(ctx, name))
      await struck
      await settle(pair, name)
      const decided = (await rowsOf(heir, name)).at(-1)?.decision
      if (first.value) expect(decided).toBe('commit')
      // Undecided it waits for its user: the call is repeated.
      expect(await commitDistributed(ctx, name)).toMatchObject({ state: 'committed' })
      await expect(rollbackDistributed(ctx, name, 'too late')).rejects.toThrow('was committed')
      await check(pair, name, id, true)
    })
  })

  describe.each(cases('rollback'))('at $what on $side, $when', ({ side, kind, when }) => {
    it('rollback comes to its end on all', async () => {
      const id = ++serial
      const name = `rollback_${id}`
      await beginDistributed(ctx, name, workOn(ctx, id))
      const struck = proxies[side]!.arm({ match: kind.match, when })
      const first = await outcomeOf(rollbackDistributed(ctx, name, 'test'))
      await struck
      await settle(pair, name)
      const decided = (await rowsOf(heir, name)).at(-1)?.decision
      if (first.value) expect(decided).toBe('abort')
      expect(await rollbackDistributed(ctx, name, 'test')).toMatchObject({ state: 'rolled_back' })
      await expect(commitDistributed(ctx, name)).rejects.toThrow(RolledBackError)
      await check(pair, name, id, false)
    })
  })

  const onPrimary = (kinds: Kind[]) =>
    kinds.flatMap((kind) => whens.map((when) => ({ side: 'primary', kind, what: kind.what, when })))
  // A run goes through begin and commit as well; effects that fail lead to the rollback.
  const ofFailure = [step('rolling_back'), endOfRun]
  const ofBegin = cases('begin').filter(({ kind }) => kind !== commitOfRow)
  const ofRun = [...ofBegin, ...cases('commit'), ...onPrimary(ofFailure)]
  describe.each(sides.length === 1 ? [] : ofRun)('at $what on $side, $when', ({ side, kind, when }) => {
    it('a run charges exactly what it commits', async () => {
      const id = ++serial
      const name = `run_${id}`
      let failures = ofFailure.includes(kind) ? 1 : 0
      const { sql } = heir.databases.primary
      const spec = {
        operation: 'order',
        stage: workOn(ctx, id),
        // The outside world, which knows the idempotency key.
        effects: async ({ idempotencyKey }: { idempotencyKey: string }) => {
          await sql`insert into ledger (key, id) values (${idempotencyKey}, ${id}) on conflict do nothing`
          if (failures-- > 0) throw new NotPreparedError('card refused')
          return 'charged'
        },
        compensate: async ({ attempt }: { attempt: string }) => {
          await sql`insert into ledger values (${attempt}, ${id}, true) on conflict (key) do update set undone = true`
        },
      }
      const struck = proxies[side]!.arm({ match: kind.match, when })
      const first = await outcomeOf(runDistributed(ctx, name, spec))
      await struck
      await settle(pair, name)
      if (first.value) expect((await rowsOf(heir, name)).at(-1)?.decision).toBe('commit')
      // The job is delivered again, to another worker.
      const again = await runDistributed(heir, name, spec)
      expect(again).toMatchObject({ state: 'committed', result: 'charged' })
      for (const { attempt } of await dueCompensations(heir))
        await compensate(heir, attempt, new AbortController().signal)
      await check(pair, name, id, true)
      expect([...(await sql`select key from ledger where id = ${id} and not undone`)]).toEqual([
        { key: again.attempt },
      ])
    })
  })
})
