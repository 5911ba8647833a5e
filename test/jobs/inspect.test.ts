import { afterAll, describe, expect, it } from 'vitest'
import { type Advice, type AdviceKind, advise, type Situation } from '../../src/cli/tx-advice.ts'
import { createClient } from '../../src/db/client.ts'
import type { Status } from '../../src/db/distributed-transactions.ts'
import { UnknownTransactionError } from '../../src/db/errors.ts'
import { formatGid, newAttempt, newOwnerId } from '../../src/db/transaction-name.ts'
import type { Tx } from '../../src/db/tx.ts'
import { beginDistributed } from '../../src/jobs/begin.ts'
import { commitDistributed } from '../../src/jobs/coordinator.ts'
import { inspect, listOpen } from '../../src/jobs/inspect.ts'
import { newDatabases, openContext } from '../support/database.ts'
import { preparedGids } from '../support/prepared-gids.ts'

const ctx = await openContext(await newDatabases({ stock: 'east', billing: 'west' }))
const { primary } = ctx.databases
for (const participant of ctx.databases.all) {
  await participant.sql`create table accounts (id int primary key, balance int not null)`
  await participant.sql`insert into accounts select generate_series(1, 9), 0`
}

/** Another program's session in one of the databases. */
function session(application: string) {
  const sql = createClient(primary.url, { max: 1, connection: { application_name: application } })
  afterAll(() => sql.end({ timeout: 0 }))
  return sql
}

const add = (id: number) => (tx: Tx) => tx`update accounts set balance = balance + 1 where id = ${id}`

describe('the blast radius', () => {
  it('names the locks, the tables and who waits for how long, also behind another that waits', async () => {
    await beginDistributed(ctx, 'radius', { primary: add(1), billing: add(1) })
    const first = session('first in line')
    const second = session('second in line')
    const waits = [first`update accounts set balance = 7 where id = 1`.execute()]
    const waiting = async (application: string) =>
      (
        await primary.sql`select from pg_stat_activity where application_name = ${application} and wait_event_type = 'Lock'`
      ).length
    await expect.poll(() => waiting('first in line')).toBe(1)
    waits.push(second`update accounts set balance = 8 where id = 1`.execute())
    const seen = await expect
      .poll(
        async () => {
          const { prepared } = await inspect(ctx, 'radius')
          return prepared
            .find((p) => p.participant === 'primary')
            ?.blastRadius?.waiters.map((w) => w.application)
        },
        { interval: 100 },
      )
      .toEqual(expect.arrayContaining(['first in line', 'second in line']))
      .then(() => inspect(ctx, 'radius'))
    const onPrimary = seen.prepared.find((p) => p.participant === 'primary')?.blastRadius
    expect(onPrimary).toMatchObject({
      ageSeconds: expect.any(Number),
      ageTransactions: expect.any(Number),
      tables: ['holdfast.transaction_markers', 'public.accounts'],
    })
    expect(onPrimary?.locks).toContainEqual({
      type: 'relation',
      relation: 'public.accounts',
      mode: 'RowExclusiveLock',
      count: 1,
    })
    const waiter = onPrimary?.waiters.find((w) => w.application === 'first in line')
    expect(waiter).toMatchObject({ type: 'transactionid', relation: null, direct: true })
    expect(waiter?.waitSeconds).toBeGreaterThanOrEqual(0)
    expect(waiter?.querySeconds).toBeGreaterThanOrEqual(waiter?.waitSeconds ?? 0)
    const onBilling = seen.prepared.find((p) => p.participant === 'billing')?.blastRadius
    expect(onBilling).toMatchObject({ waiters: [], waiting: 0 })
    expect(JSON.stringify(seen)).not.toContain('balance =')

    await commitDistributed(ctx, 'radius')
    await Promise.all(waits)
    expect((await inspect(ctx, 'radius')).prepared).toEqual([])
  })

  it('tells those who wait for it from those who wait for another on the same table', async () => {
    await beginDistributed(ctx, 'reader', (tx) => tx`select count(*)::int from accounts`)
    await beginDistributed(ctx, 'writer', add(2))
    const ddl = session('makes an index')
    const waiting = ddl`create index accounts_balance on accounts (balance)`.execute()
    const waitersOf = async (name: string) =>
      (await inspect(ctx, name)).prepared.flatMap((p) => p.blastRadius?.waiters ?? [])
    await expect
      .poll(() => waitersOf('writer'))
      .toMatchObject([
        { application: 'makes an index', direct: true, type: 'relation', relation: 'public.accounts' },
      ])
    expect(await waitersOf('reader')).toEqual([])
    await commitDistributed(ctx, 'writer')
    await waiting
    await commitDistributed(ctx, 'reader')
  })
})

describe('the list', () => {
  it('shows what is open, and apart from it ours without a row, other installations and foreign gids', async () => {
    const spec = { participant: 'primary', policy: 'presumed-abort' as const }
    const attempt = newAttempt(newOwnerId())
    const lost = formatGid({ ...spec, installation: ctx.installation, attempt, name: 'lost' })
    const theirs = formatGid({ ...spec, installation: newOwnerId(), attempt, name: 'theirs' })
    const foreign = `somebody-else-${attempt}`
    const stranger = session('stranger')
    for (const [i, gid] of [lost, theirs, foreign].entries())
      await stranger.unsafe(`begin; create table foreign_${i} (); prepare transaction '${gid}'`)
    await beginDistributed(ctx, 'waiting', { primary: add(3), billing: add(3) }, { operation: 'order' })

    const work = await listOpen(ctx)
    expect(work.transactions).toMatchObject([
      {
        name: 'waiting',
        status: 'pending',
        recorded: 'pending',
        operation: 'order',
        preparedOn: expect.arrayContaining(['primary', 'billing']),
        ownerAlive: false,
      },
    ])
    expect(work.more).toBe(false)
    expect(work.unrecorded).toMatchObject([
      { gid: lost, name: 'lost', policy: 'presumed-abort', ownerAlive: false },
    ])
    const find = (list: { gid: string }[], gid: string) => list.find((one) => one.gid === gid)
    for (const [list, gid] of [
      [work.otherInstallations, theirs],
      [work.foreign, foreign],
    ] as const) {
      expect(find(list, gid)).toEqual({
        gid,
        database: new URL(primary.url).pathname.slice(1),
        owner: expect.any(String),
        ageSeconds: expect.any(Number),
        seenFrom: expect.arrayContaining(['primary', 'stock']),
      })
    }
    expect(find(work.foreign, theirs) ?? find(work.otherInstallations, foreign)).toBeUndefined()
    expect(work.unavailable).toEqual({})
    expect(await inspect(ctx, 'lost')).toMatchObject({ transaction: null, outcome: { state: 'prepared' } })

    for (const gid of [lost, theirs, foreign]) await stranger.unsafe(`rollback prepared '${gid}'`)
    await commitDistributed(ctx, 'waiting')
    expect(await preparedGids(ctx)).toEqual([])
  })

  it('shows quarantine as the status with the reason, filters, and says when there is more', async () => {
    for (const name of ['list_1', 'list_2']) await beginDistributed(ctx, name, async () => null)
    await primary.sql`
      update holdfast.distributed_transactions set quarantine = 'somebody has to look' where name = 'list_2'`
    const set = await listOpen(ctx, { status: 'requires_manual_intervention' })
    expect(set.transactions).toMatchObject([
      {
        name: 'list_2',
        status: 'requires_manual_intervention',
        recorded: 'pending',
        quarantine: 'somebody has to look',
      },
    ])
    const limited = await listOpen(ctx, { limit: 1 })
    expect(limited).toMatchObject({ more: true, transactions: [{ name: 'list_1' }], unrecorded: [] })
    const committed = await listOpen(ctx, { status: 'committed', limit: 1 })
    expect(committed.transactions).toMatchObject([{ status: 'committed' }])
    await primary.sql`update holdfast.distributed_transactions set quarantine = null`
    for (const name of ['list_1', 'list_2']) await commitDistributed(ctx, name)
    expect((await listOpen(ctx)).transactions).toEqual([])
  })

  it('knows no transaction that never was', async () => {
    await expect(inspect(ctx, 'never_begun')).rejects.toThrow(UnknownTransactionError)
  })
})

describe('what to do', () => {
  const conditions = {
    'a live run is at it': { ownerAlive: true },
    'nobody is at it': {},
    'it waits for votes': { awaited: ['email'] },
    'its job may come back': { row: { resumable: true } },
    'past its deadline': { pastDeadline: true },
    'gone on one': { participants: { billing: { prepared: false, marker: null } } },
    'committed on one': { participants: { billing: { prepared: false, marker: 'committed' } } },
    'one is out of reach': { participants: { billing: { unavailable: 'refused' } } },
    'one was restored': { paused: ['billing'] },
    quarantined: { row: { quarantine: 'why' } },
    'quarantined, gone on one': {
      row: { quarantine: 'why' },
      participants: { billing: { prepared: false, marker: null } },
    },
    'quarantined, committed on one': {
      row: { quarantine: 'why' },
      participants: { billing: { prepared: false, marker: 'committed' } },
    },
    'compensation due': { row: { compensation: 'due' } },
    'compensation failed': { row: { compensation: 'failed', quarantine: 'why' } },
    'nothing prepared': { prepared: false },
  } satisfies Record<
    string,
    Omit<Partial<Situation>, 'row'> & { row?: Partial<NonNullable<Situation['row']>> }
  >
  type Condition = keyof typeof conditions
  type Place = Status | 'no row'

  const same = (kind: AdviceKind, others: Partial<Record<Condition, AdviceKind>>) =>
    ({
      ...Object.fromEntries(Object.keys(conditions).map((condition) => [condition, kind])),
      ...others,
    }) as Record<Condition, AdviceKind>

  const decided = same('recover', {
    'one is out of reach': 'reach',
    'one was restored': 'confirm',
  })
  const ended = same('recover', {
    quarantined: 'check',
    'quarantined, gone on one': 'check',
    'quarantined, committed on one': 'check',
    'compensation failed': 'compensate',
    'nothing prepared': 'nothing',
  })
  const expected: Record<Place, Record<Condition, AdviceKind>> = {
    started: {
      'a live run is at it': 'leave',
      'nobody is at it': 'recover',
      'it waits for votes': 'recover',
      'its job may come back': 'recover',
      'past its deadline': 'recover',
      'gone on one': 'recover',
      'committed on one': 'check',
      'one is out of reach': 'reach',
      'one was restored': 'confirm',
      quarantined: 'recover',
      'quarantined, gone on one': 'recover',
      'quarantined, committed on one': 'check',
      'compensation due': 'recover',
      'compensation failed': 'recover',
      'nothing prepared': 'recover',
    },
    pending: {
      'a live run is at it': 'leave',
      'nobody is at it': 'decide',
      'it waits for votes': 'leave',
      'its job may come back': 'leave',
      'past its deadline': 'recover',
      'gone on one': 'recover',
      'committed on one': 'recover',
      'one is out of reach': 'reach',
      'one was restored': 'confirm',
      quarantined: 'recover',
      'quarantined, gone on one': 'recover',
      'quarantined, committed on one': 'check',
      'compensation due': 'decide',
      'compensation failed': 'recover',
      'nothing prepared': 'decide',
    },
    committing: { ...decided, 'quarantined, gone on one': 'check' },
    rolling_back: { ...decided, 'quarantined, committed on one': 'check' },
    committed: ended,
    rolled_back: ended,
    cleaned_up: ended,
    'no row': same('recover', {
      'a live run is at it': 'leave',
      'one was restored': 'confirm',
      'nothing prepared': 'nothing',
    }),
  }

  const decisions = { committing: 'commit', committed: 'commit', rolling_back: 'abort' } as const
  function situation(place: Place, condition: Condition): Situation {
    const { row: fields, ...rest } = conditions[condition] as { row?: object }
    const decision =
      place in decisions
        ? decisions[place as keyof typeof decisions]
        : place === 'rolled_back' || place === 'cleaned_up'
          ? 'abort'
          : null
    const row =
      place === 'no row'
        ? null
        : {
            status: place,
            decision,
            quarantine: null,
            compensation: 'none' as const,
            resumable: false,
            ...fields,
          }
    const base = { name: 'order_1', row, ownerAlive: false, pastDeadline: false, awaited: [], paused: [] }
    const both = { primary: { prepared: true, marker: null }, billing: { prepared: true, marker: null } }
    const { participants = {}, ...others } = rest as Partial<Situation>
    return { ...base, prepared: true, ...others, participants: { ...both, ...participants } }
  }

  const table = Object.entries(expected).flatMap(([place, by]) =>
    Object.entries(by).map(([condition, kind]) => [place as Place, condition as Condition, kind] as const),
  )

  it.each(table)('%s, %s: %s', (place, condition, kind) => {
    const advice: Advice = advise(situation(place, condition))
    expect({ kind: advice.kind, why: advice.why }).toEqual({ kind, why: expect.stringMatching(/\S/) })
    // What only has to be left alone needs no command, and every other has one that can be run as it stands.
    if (['nothing', 'leave'].includes(kind)) {
      expect(advice.commands.every((c) => c.startsWith('holdfast tx rollback'))).toBe(true)
    } else expect(advice.commands).not.toEqual([])
    for (const command of advice.commands) {
      expect(command).toMatch(
        /^holdfast tx (recover( order_1( --compensated)? --reason '…'| --confirm-timeline billing)?|(commit|rollback) order_1 --reason '…')$/,
      )
    }
  })

  it('advises to write down a compensation by hand only where one was given up', () => {
    const asks = table.filter(([place, condition]) =>
      advise(situation(place, condition)).commands.some((command) => command.includes('--compensated')),
    )
    expect(asks.map(([, , kind]) => kind)).toEqual(['compensate', 'compensate', 'compensate'])
  })

  it('never advises to decide against what was decided or marked', () => {
    const decides = table.filter(([place, condition]) =>
      advise(situation(place, condition)).commands.some((command) => /tx (commit|rollback)/.test(command)),
    )
    expect(decides).toEqual([
      ['pending', 'nobody is at it', 'decide'],
      ['pending', 'it waits for votes', 'leave'],
      ['pending', 'its job may come back', 'leave'],
      ['pending', 'compensation due', 'decide'],
      ['pending', 'nothing prepared', 'decide'],
    ])
  })
})
