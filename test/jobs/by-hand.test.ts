import { afterEach, describe, expect, it } from 'vitest'
import { createClient } from '../../src/db/client.ts'
import { Databases } from '../../src/db/databases.ts'
import {
  CommittedError,
  InvalidConfigError,
  NameInUseError,
  NotAllowedError,
  NotPreparedError,
  RolledBackError,
  UnknownOutcomeError,
  UnknownTransactionError,
  VotesOutstandingError,
} from '../../src/db/errors.ts'
import { formatGid, newAttempt, newOwnerId } from '../../src/db/transaction-name.ts'
import type { Tx } from '../../src/db/tx.ts'
import { beginDistributed } from '../../src/jobs/begin.ts'
import {
  type ByHand,
  compensatedByHand,
  confirmByHand,
  finishByHand,
  recoverByHand,
} from '../../src/jobs/by-hand.ts'
import { commitDistributed, rollbackDistributed } from '../../src/jobs/coordinator.ts'
import { inspect } from '../../src/jobs/inspect.ts'
import { move, setAside } from '../../src/jobs/move.ts'
import { recover } from '../../src/jobs/recovery.ts'
import { runDistributed } from '../../src/jobs/run-distributed.ts'
import { vote } from '../../src/jobs/vote.ts'
import { newDatabases, openContext } from '../support/database.ts'
import { preparedGids } from '../support/prepared-gids.ts'

const ctx = await openContext(await newDatabases({ billing: 'west' }))
const { primary } = ctx.databases
for (const participant of ctx.databases.all)
  await participant.sql`create table orders (name text primary key)`

const hand = (decision: ByHand['decision'], more: Partial<ByHand> = {}): ByHand => ({
  decision,
  who: 'jo',
  why: 'ticket 7',
  ...more,
})
const insert = (name: string) => (tx: Tx) => tx`insert into orders values (${name})`
const begin = (name: string, options = {}) =>
  beginDistributed(ctx, name, { primary: insert(name), billing: insert(name) }, options)
const kept = async (name: string) =>
  Promise.all(
    ctx.databases.all.map(async (p) => (await p.sql`select from orders where name = ${name}`).length),
  )
const gidsOf = async (name: string) => (await preparedGids(ctx)).filter((gid) => gid.endsWith(`/${name}`))
const eventsOf = async (name: string) =>
  primary.sql<{ event: string; actor: string; detail: Record<string, unknown> | null }[]>`
    select event, actor, detail from holdfast.transaction_events where name = ${name} order by id`
const atPsql = async (verb: 'commit' | 'rollback', participantName: string, name: string) => {
  const gid = (await gidsOf(name)).find((one) => one.includes(`/${participantName}/`))
  await ctx.databases.get(participantName).sql.unsafe(`${verb} prepared '${gid}'`)
}
/** Everything that could change, but for who waits and what time it is. */
const everything = async () => ({
  gids: (await preparedGids(ctx)).toSorted(),
  rows: await primary.sql`select * from holdfast.distributed_transactions order by attempt`,
  events: await primary.sql`select * from holdfast.transaction_events order by id`,
  markers: await Promise.all(
    ctx.databases.all.map((p) => p.sql`select * from holdfast.transaction_markers order by attempt`),
  ),
})

afterEach(async () => {
  for (const participant of ctx.databases.all) {
    const rows = await participant.sql<{ gid: string }[]>`
      select gid from pg_prepared_xacts where database = current_database()`
    for (const { gid } of rows) await participant.sql.unsafe(`rollback prepared '${gid}'`)
  }
  await primary.sql`delete from holdfast.distributed_transactions`
})

describe('a decision by hand', () => {
  it.each([
    ['commit', 'committed', [1, 1]],
    ['abort', 'rolled_back', [0, 0]],
  ] as const)('to %s is carried out everywhere, and audited', async (decision, state, rows) => {
    const name = `by_hand_${decision}`
    const { attempt } = await begin(name)
    const result = await finishByHand(ctx, name, hand(decision))
    expect(result).toMatchObject({ name, attempt, decision, state, quarantine: null })
    expect(await kept(name)).toEqual(rows)
    const [login] = await primary.sql<{ login: string }[]>`select session_user as login`
    expect((await eventsOf(name)).find(({ event }) => event === 'decided_by_hand')).toEqual({
      event: 'decided_by_hand',
      actor: `${login?.login}/jo`,
      detail: {
        decision,
        why: 'ticket 7',
        evidence: expect.objectContaining({
          attempt,
          status: 'pending',
          participants: {
            primary: { prepared: true, marker: null },
            billing: { prepared: true, marker: null },
          },
        }),
      },
    })
    const again = await everything()
    expect(await finishByHand(ctx, name, hand(decision))).toMatchObject({ state })
    expect(await everything()).toEqual(again)
  })

  it('finishes what was decided and is stuck, also in quarantine', async () => {
    const { attempt } = await begin('stuck')
    await move(ctx, attempt, 'decide-commit', { decision: 'commit' })
    await setAside(ctx, attempt, 'cannot be finished on billing')
    expect(await finishByHand(ctx, 'stuck', hand('commit', { dryRun: true }))).toMatchObject({
      state: 'would finish',
      quarantine: 'cannot be finished on billing',
    })
    expect(await finishByHand(ctx, 'stuck', hand('commit'))).toMatchObject({ state: 'committed' })
    expect(await kept('stuck')).toEqual([1, 1])
    expect((await eventsOf('stuck')).map(({ event }) => event)).toContain('quarantine_released')
  })

  it.each(['commit', 'abort'] as const)('to %s changes nothing in a dry run', async (decision) => {
    await begin('dry')
    const before = await everything()
    expect(await finishByHand(ctx, 'dry', hand(decision, { dryRun: true }))).toMatchObject({
      state: 'would decide',
    })
    expect(await everything()).toEqual(before)
  })

  it('needs a reason, and something that was begun', async () => {
    await begin('reasons')
    await expect(finishByHand(ctx, 'reasons', hand('commit', { why: ' ' }))).rejects.toThrow(
      InvalidConfigError,
    )
    await expect(recoverByHand(ctx, 'reasons', 'jo', '')).rejects.toThrow(InvalidConfigError)
    await expect(finishByHand(ctx, 'never_begun', hand('abort'))).rejects.toThrow(UnknownTransactionError)
  })
})

describe('what a hand may not do', () => {
  /** Refused, and nothing has changed. */
  async function refused(name: string, decision: ByHand['decision'], error: new (...args: never[]) => Error) {
    const before = await everything()
    for (const dryRun of [true, false])
      await expect(finishByHand(ctx, name, hand(decision, { dryRun }))).rejects.toThrow(error)
    expect(await everything()).toEqual(before)
  }

  it('contradict a decision, finished or not', async () => {
    await begin('done_commit')
    await commitDistributed(ctx, 'done_commit')
    await refused('done_commit', 'abort', CommittedError)
    await begin('done_abort')
    await rollbackDistributed(ctx, 'done_abort', 'test')
    await refused('done_abort', 'commit', RolledBackError)
    const { attempt } = await begin('half_commit')
    await move(ctx, attempt, 'decide-commit', { decision: 'commit' })
    await refused('half_commit', 'abort', CommittedError)
    expect(await gidsOf('half_commit')).toHaveLength(2)
  })

  it('contradict what one database has committed already, or rolled back', async () => {
    await begin('psql_commit')
    await atPsql('commit', 'billing', 'psql_commit')
    await refused('psql_commit', 'abort', CommittedError)
    await begin('psql_rollback')
    await atPsql('rollback', 'billing', 'psql_rollback')
    await refused('psql_rollback', 'commit', NotPreparedError)
    expect(await finishByHand(ctx, 'psql_rollback', hand('abort'))).toMatchObject({ state: 'rolled_back' })
    expect(await finishByHand(ctx, 'psql_commit', hand('commit'))).toMatchObject({ state: 'committed' })
    expect(await kept('psql_commit')).toEqual([1, 1])
  })

  it('commit what is not prepared everywhere, or waits for votes', async () => {
    const { attempt } = await begin('halfway')
    await primary.sql`update holdfast.distributed_transactions set status = 'started' where attempt = ${attempt}`
    await refused('halfway', 'commit', NotPreparedError)
    await begin('voting', { awaits: ['email', 'post'] })
    await vote(ctx, 'voting', 'email', 'ready')
    await refused('voting', 'commit', VotesOutstandingError)
    expect(await finishByHand(ctx, 'voting', hand('abort'))).toMatchObject({ state: 'rolled_back' })
  })

  it('commit under the effects of a live run', async () => {
    await runDistributed(ctx, 'running', {
      stage: { primary: insert('running'), billing: insert('running') },
      effects: () => refused('running', 'commit', NameInUseError),
    })
    expect(await kept('running')).toEqual([1, 1])
  })

  it('roll back under a live run without the run seeing it', async () => {
    const run = runDistributed(ctx, 'rolled', {
      stage: { primary: insert('rolled'), billing: insert('rolled') },
      effects: () => finishByHand(ctx, 'rolled', hand('abort')).then(() => null),
    })
    await expect(run).rejects.toThrow(RolledBackError)
    expect(await kept('rolled')).toEqual([0, 0])
  })

  it('decide while a database cannot be asked', async () => {
    const { attempt } = await begin('unasked')
    await primary.sql`
      update holdfast.distributed_transactions set participants = '{primary,billing,gone}' where attempt = ${attempt}`
    for (const decision of ['commit', 'abort'] as const)
      await refused('unasked', decision, UnknownOutcomeError)
    expect(await gidsOf('unasked')).toHaveLength(2)
  })

  it('be that of a login that may not', async () => {
    await begin('roles')
    const login = `test_${newOwnerId()}`
    for (const { sql } of ctx.databases.all)
      await sql.unsafe(`create role ${login} login password '${login}'; grant usage on schema holdfast to ${login};
        grant select on all tables in schema holdfast to ${login}`)
    const urls = Object.fromEntries(
      ctx.databases.all.map(({ name, url }) => [
        name,
        Object.assign(new URL(url), { username: login, password: login }).href,
      ]),
    )
    const limited = { ...ctx, databases: new Databases(urls) }
    const before = await everything()
    expect(await finishByHand(limited, 'roles', hand('commit', { dryRun: true }))).toMatchObject({
      state: 'would decide',
    })
    await expect(finishByHand(limited, 'roles', hand('commit'))).rejects.toThrow(NotAllowedError)
    await expect(recoverByHand(limited, 'roles', 'jo', 'why')).rejects.toThrow(NotAllowedError)
    await expect(confirmByHand(limited, 'billing', 'jo')).rejects.toThrow(NotAllowedError)
    expect(await everything()).toEqual(before)
    await limited.databases.end()
    for (const { sql } of ctx.databases.all) await sql.unsafe(`drop owned by ${login}; drop role ${login}`)
  })
})

describe('a compensation that was given up', () => {
  it('is found by its name also where a later attempt has committed', async () => {
    for (const end of [rollbackDistributed, commitDistributed]) {
      await begin('twice')
      await end(ctx, 'twice', 'x')
    }
    await primary.sql`
      update holdfast.distributed_transactions set compensation = 'failed' where name = 'twice' and status = 'rolled_back'`
    const compensations = async () =>
      primary.sql`select status, compensation from holdfast.distributed_transactions where name = 'twice' order by created_at`
    const committed = { status: 'committed', compensation: 'none' }
    expect(await recoverByHand(ctx, 'twice', 'jo', 'the service is back')).toBe(true)
    expect(await compensations()).toEqual([{ status: 'rolled_back', compensation: 'due' }, committed])
    await primary.sql`update holdfast.distributed_transactions set compensation = 'failed' where compensation = 'due'`
    expect(await compensatedByHand(ctx, 'twice', 'jo', 'by phone')).toBe(true)
    expect(await compensations()).toEqual([{ status: 'rolled_back', compensation: 'done' }, committed])
    await expect(compensatedByHand(ctx, 'twice', 'jo', ' ')).rejects.toThrow(InvalidConfigError)
  })
})

describe('work without a row', () => {
  const prepare = async (policy: 'commit-forward' | 'presumed-abort', name: string, owner = newOwnerId()) => {
    const attempt = newAttempt(owner)
    const gid = formatGid({ installation: ctx.installation, policy, participant: 'primary', attempt, name })
    const sql = createClient(primary.url, { max: 1 })
    await sql.unsafe(`begin; insert into orders values ('${name}'); prepare transaction '${gid}'`)
    await sql.end()
    return attempt
  }

  it('that goes forward cannot be rolled back', async () => {
    await prepare('commit-forward', 'chunk_1')
    await expect(finishByHand(ctx, 'chunk_1', hand('abort'))).rejects.toThrow(CommittedError)
    expect(await finishByHand(ctx, 'chunk_1', hand('commit', { dryRun: true }))).toMatchObject({
      state: 'would finish',
    })
    expect(await gidsOf('chunk_1')).toHaveLength(1)
    expect(await finishByHand(ctx, 'chunk_1', hand('commit'))).toMatchObject({ state: 'committed' })
    expect(await kept('chunk_1')).toEqual([1, 0])
    expect(await eventsOf('chunk_1')).toMatchObject([
      { event: 'finished_by_hand', detail: { why: 'ticket 7' } },
      { event: 'recovered: committed' },
    ])
  })

  it('is presumed aborted, unless a marker says that it was committed', async () => {
    await prepare('presumed-abort', 'lost_1')
    await expect(finishByHand(ctx, 'lost_1', hand('commit'))).rejects.toThrow(RolledBackError)
    expect(await finishByHand(ctx, 'lost_1', hand('abort'))).toMatchObject({ state: 'rolled_back' })
    expect(await kept('lost_1')).toEqual([0, 0])

    const attempt = await prepare('presumed-abort', 'lost_2')
    await ctx.databases.get('billing').sql`
      insert into holdfast.transaction_markers (attempt, participant, outcome) values (${attempt}, 'billing', 'committed')`
    await expect(finishByHand(ctx, 'lost_2', hand('abort'))).rejects.toThrow(CommittedError)
    expect(await gidsOf('lost_2')).toHaveLength(1)
    expect(await finishByHand(ctx, 'lost_2', hand('commit'))).toMatchObject({ state: 'committed' })
    expect(await kept('lost_2')).toEqual([1, 0])
  })

  it('is left to the live process that is at it', async () => {
    await ctx.lease.hold()
    await prepare('presumed-abort', 'busy', ctx.lease.id)
    await expect(finishByHand(ctx, 'busy', hand('abort'))).rejects.toThrow(NameInUseError)
    expect(await gidsOf('busy')).toHaveLength(1)
  })
})

describe('what was finished by psql', () => {
  it('is detected and reported: against the decision', async () => {
    const { attempt } = await begin('heuristic')
    await atPsql('rollback', 'billing', 'heuristic')
    await move(ctx, attempt, 'decide-commit', { decision: 'commit' })
    expect(await recover(ctx)).toMatchObject({ left: 1 })
    const seen = await inspect(ctx, 'heuristic')
    expect(seen.transaction).toMatchObject({
      status: 'requires_manual_intervention',
      recorded: 'committing',
      quarantine: expect.stringContaining('rolled back by hand'),
    })
    expect(seen.outcome.state).toBe('unknown')
    expect(seen.heuristic).toMatchObject([
      { event: 'requires_manual_intervention', detail: { outcome: 'heuristic', participant: 'billing' } },
    ])
    const again = await finishByHand(ctx, 'heuristic', hand('commit'))
    expect(again).toMatchObject({ state: 'committing', quarantine: expect.stringContaining('billing') })
    expect(await kept('heuristic')).toEqual([1, 0])
  })

  it('is detected and reported: in place of a decision', async () => {
    await begin('instead')
    await atPsql('commit', 'billing', 'instead')
    expect(await recover(ctx)).toMatchObject({ committed: 1 })
    const seen = await inspect(ctx, 'instead')
    expect(seen).toMatchObject({ transaction: { status: 'committed' }, outcome: { state: 'committed' } })
    expect(seen.heuristic).toMatchObject([{ event: 'committing', detail: { heuristic: true } }])
  })
})

describe('a restored server', () => {
  it('is not recovered on until somebody confirms it', async () => {
    const { attempt } = await begin('restored')
    await recover(ctx)
    await move(ctx, attempt, 'decide-commit', { decision: 'commit' })
    await primary.sql`update holdfast.timelines set timeline = timeline + 1 where participant = 'billing'`
    expect(await recover(ctx, { deep: true })).toMatchObject({ committed: 0, left: 1 })
    expect(await kept('restored')).toEqual([1, 0])
    expect((await inspect(ctx, 'restored')).paused).toEqual({ billing: expect.stringContaining('timeline') })
    await expect(confirmByHand(ctx, 'nowhere', 'jo')).rejects.toThrow('nowhere')
    await confirmByHand(ctx, 'billing', 'jo: compared')
    expect(await recover(ctx, { deep: true })).toMatchObject({ committed: 1 })
    expect(await kept('restored')).toEqual([1, 1])
    const [row] = await primary.sql`
      select confirmed_by from holdfast.timelines where participant = 'billing'`
    expect(row).toEqual({ confirmed_by: 'jo: compared' })
  })
})
