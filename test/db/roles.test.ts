import { randomBytes } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { pino } from 'pino'
import { describe, expect, inject, it, onTestFinished, vi } from 'vitest'
import { createClient } from '../../src/db/client.ts'
import { Databases, type Sql } from '../../src/db/databases.ts'
import { deferred } from '../../src/db/deferred.ts'
import { NotAllowedError } from '../../src/db/errors.ts'
import { checkSchema, migrate } from '../../src/db/migrate.ts'
import { appendEvents } from '../../src/db/outbox.ts'
import { slots } from '../../src/db/outbox-ring.ts'
import { recordSnapshot } from '../../src/db/outbox-snapshots.ts'
import { commitPrepared, rollbackPrepared } from '../../src/db/prepared.ts'
import { sqlstateOf } from '../../src/db/sqlstate.ts'
import { type Step, watchSteps } from '../../src/db/steps.ts'
import { formatGid, newAttempt, newOwnerId } from '../../src/db/transaction-name.ts'
import type { Tx } from '../../src/db/tx.ts'
import { defineBatch } from '../../src/jobs/batch-definition.ts'
import { beginDistributed } from '../../src/jobs/begin.ts'
import { compensatedByHand, finishByHand, recoverByHand } from '../../src/jobs/by-hand.ts'
import { cleanStaleTransactions } from '../../src/jobs/clean-stale-transactions.ts'
import { createJobContext, type JobContext } from '../../src/jobs/context.ts'
import { commitDistributed, rollbackDistributed } from '../../src/jobs/coordinator.ts'
import { enqueueBatchJob } from '../../src/jobs/enqueue-batch.ts'
import { expireIdempotencyKeys } from '../../src/jobs/expire-idempotency-keys.ts'
import { idempotent } from '../../src/jobs/idempotent.ts'
import { cancelJob, retryJob } from '../../src/jobs/job-control.ts'
import { defineJob } from '../../src/jobs/job-definition.ts'
import { keyset } from '../../src/jobs/keyset.ts'
import { outcome } from '../../src/jobs/outcome.ts'
import { recover } from '../../src/jobs/recovery.ts'
import { removeOldOutbox } from '../../src/jobs/remove-old-outbox.ts'
import { runBatch } from '../../src/jobs/run-batch.ts'
import { runDistributed } from '../../src/jobs/run-distributed.ts'
import { sinkContext } from '../../src/jobs/sinks/sink-context.ts'
import { table } from '../../src/jobs/sinks/table.ts'
import { vote } from '../../src/jobs/vote.ts'
import { migrateQueues, Queues } from '../../src/workers/queues.ts'
import { type Cluster, newDatabase, newDatabases } from '../support/database.ts'
import { JobProcess } from '../support/jobs.ts'
import { preparedGids } from '../support/prepared-gids.ts'
import { Relays } from '../support/relays.ts'
import { SqlCursor } from '../support/sql-cursor.ts'

// Roles belong to the cluster, which other files use as well: those of the model are made where they lack and stay;
// logins have names of their own and go at the end.

type Urls = Record<string, string>
type Login = { name: string; password: string }

const signal = new AbortController().signal
const nothing = { committed: 0, rolledBack: 0, left: 0, failed: 0 }
const random = () => randomBytes(6).toString('hex')
const silent = pino({ level: 'silent' })

async function withDatabases<T>(urls: Urls, act: (databases: Databases) => Promise<T>): Promise<T> {
  const databases = new Databases(urls)
  try {
    return await act(databases)
  } finally {
    await databases.end()
  }
}

const migrateWithRoles = (urls: Urls) => withDatabases(urls, (d) => migrate(d, undefined, { roles: true }))

/** The database's owner: a superuser. */
function ownerOf(url: string): Sql {
  const sql = createClient(url, { max: 1 })
  onTestFinished(() => sql.end())
  return sql
}

/** Databases with the roles, and in each a table of business that is the application's. */
async function newInstallation(others: Record<string, Cluster> = {}): Promise<Urls> {
  const urls = await newDatabases(others)
  await migrateWithRoles(urls)
  for (const url of Object.values(urls)) await createOrders(ownerOf(url))
  return urls
}

async function createOrders(sql: Sql): Promise<void> {
  await sql.unsafe('create table orders (id int); grant select, insert on orders to holdfast_app')
}

/** A login on both clusters, member of these roles. */
async function createLogin(...roles: string[]): Promise<Login> {
  const login = { name: `test_${random()}`, password: random() }
  const clusters = Object.values(inject('postgres'))
  onTestFinished(() => dropLogin(login))
  await onEach(clusters, async (sql) => {
    await sql.unsafe(`create role ${login.name} login password '${login.password}'`)
    // A cluster that no database of the test is on may lack the roles.
    for (const role of roles) {
      const [row] = await sql`select to_regrole(${role}) is not null as there`
      if (row?.there === true) await sql.unsafe(`grant ${role} to ${login.name}`)
    }
  })
  return login
}

async function dropLogin({ name }: Login): Promise<void> {
  await onEach(Object.values(inject('postgres')), (sql) => sql.unsafe(`drop role if exists ${name}`))
}

async function onEach(urls: string[], act: (sql: Sql) => Promise<unknown>): Promise<void> {
  for (const url of urls) {
    const sql = createClient(url, { max: 1 })
    try {
      await act(sql)
    } finally {
      await sql.end()
    }
  }
}

function asLogin(urls: Urls, { name, password }: Login): Urls {
  return Object.fromEntries(
    Object.entries(urls).map(([participant, text]) => {
      const url = new URL(text)
      url.username = name
      url.password = password
      return [participant, url.href]
    }),
  )
}

/** What a process of this login has; without one, of the owner's. */
async function contextOf(urls: Urls, login?: Login): Promise<JobContext> {
  const databases = new Databases(login ? asLogin(urls, login) : urls, {
    lockTimeoutMs: 2_000,
    idleTimeoutMs: 20_000,
  })
  onTestFinished(() => databases.end())
  const { id } = await checkSchema(databases)
  const options = { databases, installation: id, kind: 'worker', leaseMs: 60_000, log: silent } as const
  const ctx = await createJobContext(options)
  onTestFinished(() => ctx.lease.end().catch(() => undefined))
  return ctx
}

const newApp = async (urls: Urls) => contextOf(urls, await createLogin('holdfast_app'))
const newOperator = async (urls: Urls) => contextOf(urls, await createLogin('holdfast_operator'))

const order = (id: number) => async (tx: Tx) => {
  await tx`insert into orders values (${id})`
  return id
}
const everywhere = (id: number) => ({ primary: order(id), billing: order(id) })

/** The owners of what is prepared, one for each gid. */
async function gidOwners(ctx: JobContext): Promise<(string | null)[]> {
  const lists = await Promise.all(
    ctx.databases.all.map(
      (p) =>
        p.sql<{ owner: string | null }[]>`
          select owner from pg_prepared_xacts where database = current_database()`,
    ),
  )
  return lists.flat().map((row) => row.owner)
}

async function ordersIn(ctx: JobContext): Promise<number[][]> {
  return Promise.all(
    ctx.databases.all.map(async ({ sql }) =>
      (await sql<{ id: number }[]>`select id from orders order by id`).map((row) => row.id),
    ),
  )
}

async function rowOf(ctx: JobContext, name: string) {
  const [row] = await ctx.databases.primary.sql<
    { status: string; decision: string | null; quarantine: string | null }[]
  >`select status, decision, quarantine from holdfast.distributed_transactions where name = ${name}`
  return row
}

/** Stops the process's work at a step for ever, as if it had died there. */
async function stoppedAt(step: Step, act: () => Promise<unknown>): Promise<void> {
  const came = deferred<void>()
  watchSteps({
    steps: new Set([step]),
    reached: () => {
      watchSteps(undefined)
      came.resolve()
      return new Promise(() => undefined)
    },
  })
  act().then(
    () => came.reject(new Error('did not come by')),
    (error: Error) => came.reject(error),
  )
  await came.promise
}

/** The owners of what is prepared each time somebody comes by one of these steps. */
async function ownersAt(ctx: JobContext, steps: Step[], act: () => Promise<unknown>): Promise<Set<unknown>> {
  const seen = new Set<unknown>()
  watchSteps({
    steps: new Set(steps),
    reached: async () => {
      for (const owner of await gidOwners(ctx)) seen.add(owner)
    },
  })
  try {
    await act()
  } finally {
    watchSteps(undefined)
  }
  return seen
}

async function endLeases(urls: Urls): Promise<void> {
  await ownerOf(
    urls.primary ?? '',
  )`update holdfast.workers set lease_until = clock_timestamp() - interval '1 s'`
}

const denied = { code: '42501' }

/** The statements that are not refused for want of a right, with what they answered; none, it is hoped. */
async function notDenied(sql: Sql, texts: string[]): Promise<string[]> {
  const others: string[] = []
  for (const text of texts) {
    const answer = await sql.unsafe(text).then(() => 'done', sqlstateOf)
    if (answer !== denied.code) others.push(`${text}: ${answer}`)
  }
  return others
}

describe('installing the roles', () => {
  /** Every right and every guard in the schema, in a fixed order. */
  const rightsIn = (sql: Sql) => sql`
    select 'schema' as on, nspname::text as name, a.grantee::regrole::text as role, a.privilege_type as right
      from pg_namespace, aclexplode(nspacl) a where nspname = 'holdfast'
    union all select 'table', relname, a.grantee::regrole::text, a.privilege_type
      from pg_class, aclexplode(relacl) a where relnamespace = 'holdfast'::regnamespace
    union all select 'column', attrelid::regclass || '.' || attname, a.grantee::regrole::text, a.privilege_type
      from pg_attribute join pg_class c on c.oid = attrelid, aclexplode(attacl) a
      where relnamespace = 'holdfast'::regnamespace
    union all select 'function', oid::regprocedure::text, a.grantee::regrole::text, a.privilege_type
      from pg_proc, aclexplode(proacl) a where pronamespace = 'holdfast'::regnamespace
    union all select 'setting', oid::regprocedure::text, setting, null
      from pg_proc, unnest(proconfig) setting where pronamespace = 'holdfast'::regnamespace
    union all select 'policy', policyname, tablename, cmd from pg_policies where schemaname = 'holdfast'
    union all select 'trigger', tgname, tgrelid::regclass::text, null from pg_trigger where not tgisinternal
    union all select 'member', roleid::regrole::text, member::regrole::text, null from pg_auth_members
      where roleid::regrole::text like 'holdfast%' and member::regrole::text like 'holdfast%'
    order by 1, 2, 3, 4`

  it('changes nothing the second time', async () => {
    const urls = await newInstallation({ billing: 'west' })
    const before = await Promise.all(Object.values(urls).map((url) => rightsIn(ownerOf(url))))
    expect(before.every((rights) => rights.length > 20)).toBe(true)
    await migrateWithRoles(urls)
    expect(await Promise.all(Object.values(urls).map((url) => rightsIn(ownerOf(url))))).toEqual(before)
    expect(await ownerOf(urls.billing ?? '')`select owner_role from holdfast.installation`).toEqual([
      { owner_role: 'holdfast_owner' },
    ])
  })

  it('is safe when ten processes do it at once, to two databases of one cluster', async () => {
    const urls = await newDatabases({ billing: 'east' })
    await Promise.all(Array.from({ length: 10 }, () => migrateWithRoles(urls)))
    await withDatabases(urls, async (databases) => {
      await checkSchema(databases)
      expect(databases.all.map(({ ownerRole }) => ownerRole)).toEqual(['holdfast_owner', 'holdfast_owner'])
    })
  })

  it.each([
    ['make the roles', []],
    ['find the roles without their memberships', ['owner', 'app', 'operator', 'reader']],
  ])('is safe where several databases of a cluster %s at once', async (_which, existing) => {
    const prefix = `test_${random()}_`
    const text = readFileSync(new URL('../../src/db/roles.sql', import.meta.url), 'utf8').replaceAll(
      'holdfast_',
      prefix,
    )
    const others = Object.fromEntries(Array.from({ length: 5 }, (_, i) => [`d${i}`, 'east' as const]))
    const urls = Object.values(await newDatabases(others))
    for (const primary of urls) await withDatabases({ primary }, (databases) => migrate(databases))
    const roles = ['owner', 'app', 'operator', 'reader'].map((role) => prefix + role)
    onTestFinished(async () => {
      await onEach(urls, (sql) => sql.unsafe(`drop owned by ${roles.join(', ')}`))
      await onEach(urls.slice(0, 1), (sql) => sql.unsafe(`drop role ${roles.join(', ')}`))
    })
    const connected = urls.map(ownerOf)
    const [first] = connected
    for (const role of existing) await first?.unsafe(`create role ${prefix}${role}`)
    await Promise.all(connected.map((sql) => sql`select 1`))
    await Promise.all(connected.map((sql) => sql.unsafe(text)))
    const members = await ownerOf(urls[0] ?? '')`
      select roleid from pg_auth_members
      where roleid::regrole::text like ${`${prefix}%`} and member::regrole::text like ${`${prefix}%`}`
    expect(members).toHaveLength(4)
  })

  it('needs no superuser: who owns the schema gives the rights, and runs the functions by hand', async () => {
    await newInstallation()
    // Its schema is the deployer's own.
    const urls = { primary: await newDatabase() }
    const deployer = await createLogin()
    const sql = ownerOf(urls.primary ?? '')
    const [database] = await sql<{ name: string }[]>`select quote_ident(current_database()) as name`
    await sql.unsafe(`alter database ${database?.name} owner to ${deployer.name}`)
    onTestFinished(async () => {
      await onEach([urls.primary ?? ''], (owner) =>
        owner.unsafe(`reassign owned by ${deployer.name} to current_user; drop owned by ${deployer.name}`),
      )
    })
    await migrateWithRoles(asLogin(urls, deployer))
    await migrateWithRoles(asLogin(urls, deployer))
    await createOrders(sql)
    const [app, operator] = [await newApp(urls), await newOperator(urls)]
    for (const name of ['a', 'b']) await beginDistributed(app, name, order(1))
    expect(await commitDistributed(app, 'a')).toMatchObject({ state: 'committed' })
    const hand = { decision: 'commit', who: 'olivia', why: 'ticket 7' } as const
    expect(await finishByHand(operator, 'b', hand)).toMatchObject({ state: 'committed' })
    expect(await ordersIn(app)).toEqual([[1, 1]])
  })

  it('is repeated by each later migrate, so that what was added meanwhile has its grants', async () => {
    const urls = await newInstallation()
    const sql = ownerOf(urls.primary ?? '')
    await sql.unsafe('revoke insert on holdfast.outbox from holdfast_app')
    await migrateQueues(urls.primary ?? '')
    const { applied } = await withDatabases(urls, (databases) => migrate(databases))
    expect(applied).toEqual([])
    expect(
      await sql`select has_table_privilege('holdfast_app', 'holdfast.outbox', 'insert') as outbox,
        has_schema_privilege('holdfast_app', 'holdfast_bullmq', 'usage') as queues`,
    ).toEqual([{ outbox: true, queues: true }])
  })

  it('leaves databases without them alone', async () => {
    const urls = await newDatabases()
    await withDatabases(urls, async (databases) => {
      await migrate(databases)
      await migrate(databases)
      await checkSchema(databases)
      expect(databases.primary.ownerRole).toBeUndefined()
    })
  })

  it('says of every table who may write what', async () => {
    const urls = await newInstallation()
    const tables = await ownerOf(urls.primary ?? '')<{ name: string; app: string; operator: string }[]>`
      select relname as name, max(rights) filter (where role = 'holdfast_app') as app,
        max(rights) filter (where role = 'holdfast_operator') as operator
      from (
        select relname, role, array_to_string(array[
          case when has_table_privilege(role, c.oid, 'insert') then 'insert'
               when has_any_column_privilege(role, c.oid, 'insert') then 'insert some' end,
          case when has_table_privilege(role, c.oid, 'update') then 'update'
               when has_any_column_privilege(role, c.oid, 'update') then 'update some' end,
          case when has_table_privilege(role, c.oid, 'delete') then 'delete' end,
          case when has_table_privilege(role, c.oid, 'truncate') then 'truncate' end,
          case when has_table_privilege(role, c.oid, 'references, trigger') then 'more' end], ', ') as rights
        from pg_class c, (values ('holdfast_app'), ('holdfast_operator'), ('holdfast_reader'), ('holdfast_owner')) r (role)
        where relnamespace = 'holdfast'::regnamespace and relkind in ('r', 'p', 'v')) t
      group by relname`
    const writable = tables.filter(({ app, operator }) => app !== '' || operator !== '')
    expect(Object.fromEntries(writable.map(({ name, app, operator }) => [name, [app, operator]]))).toEqual({
      batch_failures: ['insert, update', ''],
      batch_jobs: ['insert, update', ''],
      batch_positions: ['insert', ''],
      batch_ranges: ['insert, update some', ''],
      batch_runs: ['insert, update some', ''],
      distributed_transactions: ['insert, update some, delete', 'update some'],
      idempotency_keys: ['insert, update, delete', ''],
      inbox: ['insert, delete', ''],
      inbox_seen: ['insert, update some, delete', ''],
      job_runs: ['insert, delete', ''],
      schedules: ['insert, update, delete', ''],
      jobs: ['insert, update, delete', ''],
      outbox: ['insert', ''],
      ...Object.fromEntries(slots.map((slot) => [`outbox_${slot}`, ['truncate', '']])),
      outbox_actions: ['delete', ''],
      outbox_circuits: ['insert, update', ''],
      outbox_cursors: ['insert, update some', ''],
      outbox_parked: ['insert, update, delete', ''],
      outbox_positions: ['insert, delete', ''],
      outbox_replays: ['delete', ''],
      outbox_snapshots: ['insert, delete', ''],
      timelines: ['insert', 'insert, update'],
      transaction_events: ['insert some, delete', 'insert some'],
      transaction_markers: ['insert, update some, delete', 'insert'],
      transaction_votes: ['insert, update some, delete', ''],
      workers: ['insert, update, delete', ''],
    })
    // A new table is read only until a line in src/db/roles.sql says otherwise.
    const readOnly = tables.map(({ name }) => name).filter((name) => !writable.some((t) => t.name === name))
    expect(readOnly.toSorted()).toEqual(['installation', 'schema_migrations', 'transaction_audit'])
  })
})

describe('an application', () => {
  it('begins, commits and rolls back on two databases; all that is prepared is the owner role’s', async () => {
    const urls = await newInstallation({ billing: 'west' })
    const app = await newApp(urls)
    await beginDistributed(app, 'kept', everywhere(1))
    await beginDistributed(app, 'undone', everywhere(2))
    expect(await gidOwners(app)).toEqual(Array(4).fill('holdfast_owner'))
    expect(await commitDistributed(app, 'kept')).toEqual({ state: 'committed', finished: 2, of: 2 })
    expect(await rollbackDistributed(app, 'undone', 'test')).toMatchObject({ state: 'rolled_back' })
    expect(await ordersIn(app)).toEqual([[1], [1]])
    expect((await outcome(app, 'kept')).state).toBe('committed')
    await expect(
      beginDistributed(app, 'failing', async () => Promise.reject(new Error('changed my mind'))),
    ).rejects.toThrow('changed my mind')
    expect((await outcome(app, 'failing')).state).toBe('rolled_back')
  })

  it('runs a transaction with effects, and compensates one whose effects fail', async () => {
    const urls = await newInstallation({ billing: 'west' })
    const app = await newApp(urls)
    const done = await runDistributed(app, 'run', { stage: everywhere(1), effects: () => 'sent' })
    expect(done).toMatchObject({ state: 'committed', result: 'sent' })
    const compensate = vi.fn()
    const failing = runDistributed(app, 'run-failing', {
      operation: 'order',
      stage: everywhere(2),
      effects: () => Promise.reject(new Error('refused')),
      compensate,
    })
    await expect(failing).rejects.toThrow('refused')
    expect(compensate).toHaveBeenCalledOnce()
    expect(await ordersIn(app)).toEqual([[1], [1]])
  })

  it('commits by votes', async () => {
    const urls = await newInstallation({ billing: 'west' })
    const app = await newApp(urls)
    await beginDistributed(app, 'ready', everywhere(1), { awaits: ['email'] })
    await beginDistributed(app, 'not', everywhere(2), { awaits: ['email'] })
    expect(await vote(app, 'ready', 'email', 'ready')).toMatchObject({ state: 'committed' })
    expect(await vote(app, 'not', 'email', 'abort')).toMatchObject({ state: 'rolled_back' })
    expect(await ordersIn(app)).toEqual([[1], [1]])
  })

  it('removes what is old of the outbox, and records what is visible', async () => {
    const urls = await newInstallation()
    const app = await newApp(urls)
    const { primary } = app.databases
    const cursors = await SqlCursor.makeAll(primary, 'mail')
    await primary.transaction((tx) => appendEvents(tx, { type: 't' }))
    for (const cursor of cursors) await cursor.pass()
    expect(await recordSnapshot(primary)).toBe(true)
    const retention = { transactionsMs: 1, eventsMs: 1, outboxMs: 1 }
    // The first time it only sends new rows elsewhere.
    const removed = async () => (await removeOldOutbox(app, retention, signal)).emptied
    await expect.poll(removed).toEqual([0])
    const refused = [
      'delete from holdfast.outbox',
      'truncate holdfast.outbox',
      `update holdfast.outbox_0 set event = '1'`,
      `select holdfast.redrive_parked('mail', null, 'me', 'why')`,
      `select holdfast.discard_parked('mail', null, 'me', 'why')`,
      `select holdfast.replay_outbox('mail', now(), null, 'me', 'why')`,
      `select holdfast.rebase_outbox('mail', 'me', 'why')`,
      `select holdfast.forget_sink('mail', 'me', 'why')`,
      `insert into holdfast.outbox_actions (action, sink, actor, reason) values ('forget', 'mail', 'me', 'why')`,
    ]
    expect(await notDenied(primary.sql, refused)).toEqual([])
    const { sql } = (await newOperator(urls)).databases.primary
    await sql`select holdfast.replay_outbox('mail', now(), null, 'me', 'why')`
    await sql`select holdfast.forget_sink('mail', 'me', 'why')`
    expect(await sql`select action from holdfast.outbox_actions order by id`).toEqual([
      { action: 'replay' },
      { action: 'forget' },
    ])
    const notAnOperators = ['truncate holdfast.outbox_0', `select setval('holdfast.outbox_slot', 0)`]
    expect(await notDenied(sql, notAnOperators)).toEqual([])
  })

  it('publishes, and relays to a table', async () => {
    const urls = await newInstallation({ billing: 'west' })
    const app = await newApp(urls)
    const { primary } = app.databases
    await primary.transaction((tx) => appendEvents(tx, { type: 'a', data: 1 }))
    await primary.sql`select holdfast.publish('b', 'subject', '2')`
    await beginDistributed(app, 'publishing', (tx) => appendEvents(tx, { type: 'c', data: 3 }))
    await commitDistributed(app, 'publishing')
    const sink = await table({ database: 'billing' }).open(sinkContext(app, 'inbox'))
    const relay = new Relays(app, sink, { sink: 'inbox', pageSize: 2, wants: () => true })
    const owners = await ownersAt(app, ['page.prepared'], async () => {
      expect(await relay.drain(signal)).toEqual({ published: 3, outcome: 'idle' })
    })
    expect(owners).toEqual(new Set(['holdfast_owner']))
    const { sql } = app.databases.get('billing')
    // Without a key they are spread over the shards, which keep no order among each other.
    expect(await sql`select data from holdfast.inbox order by data`).toEqual(
      [1, 2, 3].map((data) => ({ data })),
    )
    // The same with the commit of a page and the staging of the next in one flush.
    for (let i = 0; i < 5; i++) await primary.sql`select holdfast.publish('d', 'subject', '4')`
    expect(await relay.drain(signal)).toEqual({ published: 5, outcome: 'idle' })
  })

  it('enqueues, runs, redrives, cancels and cleans up jobs', async () => {
    const urls = await newInstallation({ billing: 'west' })
    const compensate = vi.fn()
    let works = false
    const place = defineJob({
      name: 'place',
      participants: ['primary', 'billing'],
      retry: { attempts: 1 },
      async stage({ txs }) {
        for (const tx of Object.values(txs)) await order(1)(tx)
      },
      effects() {
        if (!works) throw new Error('refused')
      },
      compensate,
    })
    const app = new JobProcess(await newApp(urls), [place])
    const jobId = await app.ctx.databases.primary.transaction((tx) => app.enqueue('place', null, { tx }))
    expect(await app.run(jobId)).toBe('failed')
    expect(compensate).toHaveBeenCalledOnce()
    works = true
    expect(await retryJob(app.ctx, jobId)).toBe('queued')
    expect(await app.run(jobId)).toBe('completed')
    expect(await ordersIn(app.ctx)).toEqual([[1], [1]])
    expect(await cancelJob(app.ctx, await app.enqueue('place'))).toBe('cancelled')
    await ownerOf(urls.primary ?? '')`update holdfast.jobs set created_at = created_at - interval '1 hour',
      finished_at = finished_at - interval '1 hour'`
    const retention = { transactionsMs: 60_000, eventsMs: 60_000 }
    expect(await cleanStaleTransactions(app.ctx, retention, signal)).toMatchObject({ jobs: 2 })
  })

  it('runs a batch', async () => {
    const urls = await newInstallation()
    const app = await newApp(urls)
    await ownerOf(urls.primary ?? '').unsafe(
      `create table source (id int primary key); insert into source select generate_series(1, 25);
        grant select on source to holdfast_app`,
    )
    const batch = defineBatch({
      name: 'copy',
      source: keyset<{ id: number }>({ table: 'source', key: ['id'] }),
      chunkSize: 10,
      async process(rows, { tx, publish }) {
        for (const { id } of rows) await order(id)(tx)
        await publish({ type: 'copied', data: rows.length })
      },
    })
    const batches = new Map([[batch.name, batch]])
    const { jobId } = await enqueueBatchJob(app, batch, {}, 'test')
    await stoppedAt('chunk.prepared', () => runBatch(app, batches, jobId, signal))
    expect(await gidOwners(app)).toEqual(['holdfast_owner'])
    expect(await runBatch(app, batches, jobId, signal)).toBe('completed')
    expect((await ordersIn(app))[0]).toHaveLength(25)
  })

  it('makes calls with idempotency keys, and removes them when they expire', async () => {
    const urls = await newInstallation()
    const app = await newApp(urls)
    const call = () => idempotent(app, { scope: 's', key: 'k' }, (tx) => order(1)(tx).then(() => 'done'))
    expect(await call()).toEqual({ response: 'done', replayed: false })
    expect(await call()).toEqual({ response: 'done', replayed: true })
    const sql = ownerOf(urls.primary ?? '')
    await sql`update holdfast.idempotency_keys set expires_at = clock_timestamp()`
    expect(await expireIdempotencyKeys(app, signal)).toEqual({ keys: 1 })
    expect(await call()).toEqual({ response: 'done', replayed: false })
    const failing = idempotent(app, { scope: 's', key: 'other' }, () => Promise.reject(new Error('no stock')))
    await expect(failing).rejects.toThrow('no stock')
    expect(await sql`select key from holdfast.idempotency_keys`).toEqual([{ key: 'k' }])
    // An operator does no application's work, and tokens never go back.
    const operator = await newOperator(urls)
    const refused = [
      `select * from holdfast.claim_idempotency_key('s', 'new', '', '1 s', '1 s')`,
      'delete from holdfast.idempotency_keys',
    ]
    expect(await notDenied(operator.databases.primary.sql, refused)).toEqual([])
    expect(
      await notDenied(app.databases.primary.sql, [`select setval('holdfast.idempotency_token', 1)`]),
    ).toEqual([])
  })

  it('recovers what a crash left, and cleans up; the audit of the last day stays', async () => {
    const urls = await newInstallation({ billing: 'west' })
    const [dead, app] = [await newApp(urls), await newApp(urls)]
    await stoppedAt('begin.prepared-all', () => beginDistributed(dead, 'staging', everywhere(1)))
    await beginDistributed(dead, 'decided', everywhere(2))
    await stoppedAt('commit.decided', () => commitDistributed(dead, 'decided'))
    await endLeases(urls)
    expect(await recover(app)).toEqual({ ...nothing, committed: 1, rolledBack: 1 })
    expect(await preparedGids(app)).toEqual([])
    expect(await ordersIn(app)).toEqual([[2], [2]])

    const sql = ownerOf(urls.primary ?? '')
    await sql`update holdfast.distributed_transactions set updated_at = clock_timestamp() - interval '1 hour'`
    await sql`update holdfast.transaction_events set at = at - interval '2 days' where event = 'started'`
    for (const url of Object.values(urls)) {
      await ownerOf(url)`update holdfast.transaction_markers set at = at - interval '1 hour'`
    }
    const retention = { transactionsMs: 60_000, eventsMs: 60_000 }
    expect(await cleanStaleTransactions(app, retention, signal)).toMatchObject({ transactions: 2, events: 2 })
    await sql`update holdfast.transaction_events set at = at - interval '1 hour'`
    expect(await cleanStaleTransactions(app, retention, signal)).toMatchObject({ failed: 0, events: 0 })
    expect((await sql`select event from holdfast.transaction_events`).length).toBeGreaterThan(3)
    expect(await sql`select job from holdfast.job_runs`).toHaveLength(2)
  })

  it('may rewrite neither what it began, nor the audit, nor what a migration made', async () => {
    const urls = await newInstallation({ billing: 'west' })
    const app = await newApp(urls)
    await beginDistributed(app, 'order', order(1), { finishers: ['holdfast_operator'] })
    const { sql } = app.databases.primary
    const attempt = newAttempt(newOwnerId())
    const refused = [
      `update holdfast.transaction_events set actor = 'somebody else'`,
      `truncate holdfast.transaction_events`,
      `insert into holdfast.transaction_events (event, name, attempt, actor, at) values ('x', 'x', '${attempt}', 'x', now())`,
      `insert into holdfast.transaction_events (event, name, attempt, actor) values ('decided_by_hand', 'x', '${attempt}', 'x')`,
      `insert into holdfast.transaction_events (id, event, name, attempt, actor) overriding system value values (1, 'x', 'x', '${attempt}', 'x')`,
      `update holdfast.distributed_transactions set finishers = null`,
      `update holdfast.distributed_transactions set name = 'other'`,
      `update holdfast.transaction_votes set token_hash = ''`,
      `update holdfast.transaction_markers set outcome = 'aborted'`,
      `update holdfast.outbox set event = '1'`,
      `delete from holdfast.outbox`,
      `insert into holdfast.timelines values ('x', 'x', 1, 'x') on conflict (participant) do update set timeline = 2`,
      `insert into holdfast.schema_migrations values (9999, 'x')`,
      `delete from holdfast.schema_migrations`,
      `update holdfast.installation set owner_role = null`,
      `create table holdfast.mine ()`,
      `alter table holdfast.transaction_events disable row level security`,
      `select holdfast.decide_by_hand('${attempt}', 'commit', 'me', 'because', '{}')`,
      `select holdfast.release_quarantine('${attempt}', 'me', 'because')`,
      `select holdfast.compensated_by_hand('${attempt}', 'me', 'because')`,
      `insert into holdfast.transaction_events (event, name, attempt, actor) values ('compensated_by_hand', 'x', '${attempt}', 'x')`,
      `select holdfast.record_by_hand('finished_by_hand', 'x', '${attempt}', 'me', 'because', '{}')`,
    ]
    expect(await notDenied(sql, refused)).toEqual([])
    expect((await sql`delete from holdfast.transaction_events`).count).toBe(0)
    await expect(
      app.databases.get('billing').sql`update holdfast.installation set owner_role = null`,
    ).rejects.toMatchObject(denied)
  })
})

describe('a login that is rotated away', () => {
  it('leaves nothing that another one could not finish', async () => {
    const urls = await newInstallation({ billing: 'west' })
    const [old, heir] = [await createLogin('holdfast_app'), await newApp(urls)]
    const gone = await contextOf(urls, old)
    await beginDistributed(gone, 'kept', everywhere(1))
    await stoppedAt('begin.prepared-all', () => beginDistributed(gone, 'staging', everywhere(2)))
    await endLeases(urls)
    await dropLogin(old)
    const alerts = vi.spyOn(heir.alerts, 'raise')
    expect(await recover(heir)).toEqual({ ...nothing, rolledBack: 1, left: 1 })
    expect(await commitDistributed(heir, 'kept')).toMatchObject({ state: 'committed' })
    expect(await ordersIn(heir)).toEqual([[1], [1]])
    expect(alerts).not.toHaveBeenCalled()
  })

  /** What was prepared by a login that had rights of its own, before there were roles. */
  async function preparedBefore() {
    const urls = await newDatabases({ billing: 'west' })
    await withDatabases(urls, (databases) => migrate(databases))
    const login = await createLogin()
    for (const url of Object.values(urls)) {
      const sql = ownerOf(url)
      await sql.unsafe(`create table orders (id int); grant all on orders to ${login.name};
        grant usage on schema holdfast to ${login.name}; grant all on all tables in schema holdfast to ${login.name};
        grant all on all sequences in schema holdfast to ${login.name}`)
    }
    onTestFinished(() => onEach(Object.values(urls), (sql) => sql.unsafe(`drop owned by ${login.name}`)))
    const before = await contextOf(urls, login)
    for (const name of ['by-itself', 'by-superuser']) await beginDistributed(before, name, everywhere(1))
    await migrateWithRoles(urls)
    await onEach(Object.values(inject('postgres')), (sql) =>
      sql.unsafe(`grant holdfast_app to ${login.name}`),
    )
    return { urls, login, before }
  }

  it('finishes what it prepared before the roles were there, and so does a superuser', async () => {
    const { urls, login } = await preparedBefore()
    const itself = await contextOf(urls, login)
    expect(itself.databases.primary.ownerRole).toBe('holdfast_owner')
    expect(await commitDistributed(itself, 'by-itself')).toMatchObject({ state: 'committed' })
    expect(await rollbackDistributed(await contextOf(urls), 'by-superuser', 'x')).toMatchObject({
      state: 'rolled_back',
    })
    expect(await ordersIn(itself)).toEqual([[1], [1]])
  })

  it('finishes what others prepared with the roles although it started before them', async () => {
    const { urls, before } = await preparedBefore()
    expect(before.databases.primary.ownerRole).toBeUndefined()
    const app = await newApp(urls)
    await beginDistributed(app, 'later', async () => null)
    expect(await commitDistributed(before, 'later')).toMatchObject({ state: 'committed' })
  })
})

describe('an operator', () => {
  const hand = { who: 'olivia', why: 'ticket 7' }

  it('decides by hand what an application may not, and drives it to the end', async () => {
    const urls = await newInstallation({ billing: 'west' })
    const [app, login] = [await newApp(urls), await createLogin('holdfast_operator')]
    const operator = await contextOf(urls, login)
    for (const name of ['commit', 'abort']) await beginDistributed(app, name, everywhere(1))
    for (const decision of ['commit', 'abort'] as const) {
      const byApp = finishByHand(app, decision, { ...hand, decision })
      await expect(byApp).rejects.toMatchObject({ code: 'HOLDFAST_NOT_ALLOWED' })
      expect(await rowOf(app, decision)).toMatchObject({ status: 'pending' })
      expect(await finishByHand(operator, decision, { ...hand, decision })).toMatchObject({
        state: decision === 'commit' ? 'committed' : 'rolled_back',
      })
      const [audited] = await app.databases.primary.sql<{ actor: string; detail: Record<string, unknown> }[]>`
        select actor, detail from holdfast.transaction_events where name = ${decision} and event = 'decided_by_hand'`
      expect(audited).toEqual({
        actor: `${login.name}/olivia`,
        detail: { decision, why: 'ticket 7', evidence: expect.objectContaining({ status: 'pending' }) },
      })
    }
    expect(await preparedGids(app)).toEqual([])
    expect(await ordersIn(app)).toEqual([[1], [1]])
  })

  it('releases a quarantine, and finishes what has no row', async () => {
    const urls = await newInstallation({ billing: 'west' })
    const [app, login] = [await newApp(urls), await createLogin('holdfast_operator')]
    const operator = await contextOf(urls, login)
    await beginDistributed(app, 'quarantined', everywhere(1))
    const sql = ownerOf(urls.primary ?? '')
    await sql`update holdfast.distributed_transactions set quarantine = 'test'`
    await expect(recoverByHand(app, 'quarantined', 'me', 'why')).rejects.toThrow(NotAllowedError)
    expect(await recoverByHand(operator, 'quarantined', 'olivia', 'ticket 7')).toBe(true)
    expect(await rowOf(app, 'quarantined')).toMatchObject({ quarantine: null })
    await commitDistributed(app, 'quarantined')

    await beginDistributed(app, 'given-up', order(3))
    await rollbackDistributed(app, 'given-up', 'no')
    await sql`update holdfast.distributed_transactions set compensation = 'failed' where name = 'given-up'`
    await expect(compensatedByHand(app, 'given-up', 'me', 'why')).rejects.toThrow(NotAllowedError)
    expect(await compensatedByHand(operator, 'given-up', 'olivia', 'ticket 8')).toBe(true)

    await beginDistributed(app, 'row-lost', order(2))
    await sql`delete from holdfast.distributed_transactions where name = 'row-lost'`
    await endLeases(urls)
    const byApp = finishByHand(app, 'row-lost', { ...hand, decision: 'abort' })
    await expect(byApp).rejects.toThrow(NotAllowedError)
    expect(await preparedGids(app)).toHaveLength(1)
    await finishByHand(operator, 'row-lost', { ...hand, decision: 'abort' })
    expect(await preparedGids(app)).toEqual([])
    expect(
      await sql`select distinct actor from holdfast.transaction_events
        where event in ('quarantine_released', 'finished_by_hand')`,
    ).toEqual([{ actor: `${login.name}/olivia` }])
  })

  it('decides nothing without the audit, and stages nothing', async () => {
    const urls = await newInstallation()
    const [app, operator] = [await newApp(urls), await newOperator(urls)]
    await beginDistributed(app, 'order', order(1))
    await expect(commitDistributed(operator, 'order')).rejects.toMatchObject({
      code: 'HOLDFAST_NOT_ALLOWED',
    })
    await expect(rollbackDistributed(operator, 'order', 'x')).rejects.toMatchObject({
      code: 'HOLDFAST_NOT_ALLOWED',
    })
    expect(await rowOf(app, 'order')).toMatchObject({ status: 'pending', decision: null })
    await expect(beginDistributed(operator, 'mine', order(2))).rejects.toMatchObject(denied)
    const { sql } = operator.databases.primary
    const refused = [
      'insert into orders values (2)',
      `select holdfast.publish('a', 'b', '1')`,
      `insert into holdfast.transaction_events (event, name, attempt, actor)
        values ('decided_by_hand', 'x', '${newAttempt(newOwnerId())}', 'x')`,
      `update holdfast.distributed_transactions set quarantine = 'x'`,
      'delete from holdfast.transaction_events',
      'delete from holdfast.transaction_markers',
      'set role holdfast_owner; insert into orders values (2)',
    ]
    expect(await notDenied(sql, refused)).toEqual([])
    await commitDistributed(app, 'order')
  })

  it('gains no right of the schema’s owner through names of its own', async () => {
    const urls = await newInstallation()
    const [app, operator] = [await newApp(urls), await newOperator(urls)]
    await beginDistributed(app, 'decided', async () => null)
    await commitDistributed(app, 'decided')
    await beginDistributed(app, 'order', async () => null, { finishers: ['holdfast_operator'] })
    const [row] = await app.databases.primary.sql<{ attempt: string }[]>`
      select attempt from holdfast.distributed_transactions where name = 'order'`
    const [result] = await operator.databases.primary.transaction(async (tx) => {
      // Where a function's types are looked up in pg_temp, this check runs with the rights of the function's owner.
      await tx.unsafe(`
        create table pg_temp.ran_as (who text);
        grant insert, select on pg_temp.ran_as to public;
        create function pg_temp.note() returns boolean language plpgsql as
          $$ begin insert into pg_temp.ran_as values (current_user); return true; end $$;
        create domain pg_temp.text as pg_catalog.text check (pg_temp.note())`)
      // The triggers are compiled when they first run in a session: here by an update that is allowed.
      await tx`update holdfast.distributed_transactions set updated_at = updated_at where name = 'decided'`
      await tx`select holdfast.decide_by_hand(${row?.attempt ?? ''}, 'commit', 'me', 'because', '{}')`
      return tx`select count(*)::int as times from pg_temp.ran_as where who <> session_user`
    })
    expect(result).toEqual({ times: 0 })
    await commitDistributed(app, 'order')
  })
})

describe('a reader', () => {
  it('sees everything and writes nothing', async () => {
    const urls = await newInstallation({ billing: 'west' })
    const app = await newApp(urls)
    await beginDistributed(app, 'order', everywhere(1))
    await commitDistributed(app, 'order')
    const reading = asLogin(urls, await createLogin('holdfast_reader'))
    for (const url of Object.values(reading)) {
      const sql = ownerOf(url)
      const tables = await sql<{ name: string }[]>`
        select c.oid::regclass::text as name from pg_class c
        where relnamespace = 'holdfast'::regnamespace and relkind in ('r', 'p')`
      expect(tables.length).toBeGreaterThanOrEqual(4)
      for (const { name } of tables) {
        await sql.unsafe(`select * from ${name}`)
        const writes = [`delete from ${name}`, `insert into ${name} default values`]
        expect(await notDenied(sql, writes)).toEqual([])
      }
    }
    const sql = ownerOf(reading.primary ?? '')
    expect((await sql`select 1 from holdfast.transaction_events`).length).toBeGreaterThan(2)
    const refused = [
      `select holdfast.publish('a', 'b', '1')`,
      `select holdfast.record_by_hand('x', 'x', gen_random_uuid(), 'x', 'x', '{}')`,
      'set role holdfast_owner',
      'set role holdfast_app',
    ]
    expect(await notDenied(sql, refused)).toEqual([])
  })
})

describe('a login that may not become the owner role', () => {
  it.each([
    ['with no right at all', []],
    ['that only reads', ['holdfast_reader']],
    ['whose membership does not allow SET ROLE', ['holdfast_app with set false']],
  ])('is refused at boot: one %s', async (_which, [membership]) => {
    const urls = await newInstallation({ billing: 'west' })
    const login = await createLogin()
    const [role, options = ''] = membership?.split(' with ') ?? []
    const grant = `grant ${role} to ${login.name}${options && ` with ${options}`}`
    if (role !== undefined) await onEach(Object.values(inject('postgres')), (sql) => sql.unsafe(grant))
    await withDatabases(asLogin(urls, login), async (databases) => {
      const refused = checkSchema(databases)
      await expect(refused).rejects.toMatchObject({ code: 'HOLDFAST_NOT_ALLOWED' })
      await expect(refused).rejects.toThrow(`GRANT holdfast_app TO ${login.name}`)
    })
  })
})

describe('a gid of ours that belongs to somebody else', () => {
  it('is told of and set aside, and the others go on', async () => {
    const urls = await newDatabases({ billing: 'west' })
    await withDatabases(urls, (databases) => migrate(databases))
    for (const url of Object.values(urls)) await ownerOf(url).unsafe('create table orders (id int)')
    const superuser = await contextOf(urls)
    await beginDistributed(superuser, 'foreign-decided', everywhere(1))
    await stoppedAt('begin.prepared-all', () => beginDistributed(superuser, 'foreign', everywhere(2)))
    await migrateWithRoles(urls)
    for (const url of Object.values(urls)) {
      await ownerOf(url).unsafe('grant select, insert on orders to holdfast_app')
    }

    const [dead, app] = [await newApp(urls), await newApp(urls)]
    await stoppedAt('begin.prepared-all', () => beginDistributed(dead, 'ours', everywhere(3)))
    const { installation } = app
    const gid = (policy: 'presumed-abort' | 'commit-forward', name: string) =>
      formatGid({ installation, policy, participant: 'primary', attempt: newAttempt(newOwnerId()), name })
    const stranger = ownerOf(asLogin(urls, await createLogin()).primary ?? '')
    const strange = [gid('presumed-abort', 'strange'), gid('commit-forward', 'strange-forward')]
    for (const one of strange) await stranger.unsafe(`begin; prepare transaction '${one}'`)
    await endLeases(urls)

    const alerts = vi.spyOn(app.alerts, 'raise')
    expect(await commitDistributed(app, 'foreign-decided')).toEqual({
      state: 'committing',
      finished: 0,
      of: 2,
    })
    expect(await recover(app)).toEqual({ ...nothing, rolledBack: 1, left: 3, failed: 2 })
    const raised = (kind: string) =>
      [...new Set(alerts.mock.calls.flatMap(([a]) => (a.kind === kind ? [a.subject] : [])))].toSorted()
    const before = (await preparedGids(app)).filter((one) => !strange.includes(one))
    expect(before).toHaveLength(4)
    expect(raised('foreign_owner')).toEqual([...before, ...strange].toSorted())
    expect(raised('requires_manual_intervention')).toEqual(['foreign', 'foreign-decided'])
    expect(raised('stuck')).toEqual(['strange', 'strange-forward'])
    for (const name of ['foreign', 'foreign-decided']) {
      expect((await rowOf(app, name))?.quarantine).toContain('permission denied')
    }
    // A superuser's deep pass finishes them all, as decided.
    expect(await recover(superuser, { deep: true })).toEqual({ ...nothing, committed: 2, rolledBack: 2 })
    expect(await preparedGids(app)).toEqual([])
    expect(await ordersIn(app)).toEqual([[1], [1]])
  })
})

describe('finishers', () => {
  it('alone may decide, until the deadline', async () => {
    const urls = await newInstallation({ billing: 'west' })
    const role = await createLogin()
    const [outsider, finisher] = [
      await newApp(urls),
      await contextOf(urls, await createLogin('holdfast_app', role.name)),
    ]
    const finishers = [role.name]
    for (const name of ['committed', 'rolled-back', 'late'])
      await beginDistributed(outsider, name, everywhere(1), { finishers })
    const refused = [
      () => commitDistributed(outsider, 'committed'),
      () => rollbackDistributed(outsider, 'committed', 'x'),
    ]
    for (const act of refused) await expect(act()).rejects.toMatchObject({ code: 'HOLDFAST_NOT_ALLOWED' })
    expect(await rowOf(outsider, 'committed')).toEqual({
      status: 'pending',
      decision: null,
      quarantine: null,
    })
    expect(await preparedGids(outsider)).toHaveLength(6)
    expect(await commitDistributed(finisher, 'committed')).toMatchObject({ state: 'committed' })
    expect(await rollbackDistributed(finisher, 'rolled-back', 'x')).toMatchObject({ state: 'rolled_back' })

    expect(await recover(outsider)).toEqual({ ...nothing, left: 1 })
    await ownerOf(urls.primary ?? '')`
      update holdfast.distributed_transactions set deadline = clock_timestamp() - interval '1 second'`
    await expect(commitDistributed(outsider, 'late')).rejects.toThrow(NotAllowedError)
    expect(await recover(outsider)).toEqual({ ...nothing, rolledBack: 1 })
    expect(await rowOf(outsider, 'late')).toMatchObject({ status: 'cleaned_up', quarantine: null })
  })

  it('may be a login by its name, and bind an operator too', async () => {
    const urls = await newInstallation()
    const login = await createLogin('holdfast_app')
    const [app, named, operator] = [await newApp(urls), await contextOf(urls, login), await newOperator(urls)]
    await beginDistributed(app, 'order', order(1), { finishers: [login.name] })
    const byHand = finishByHand(operator, 'order', { decision: 'abort', who: 'o', why: 'w' })
    await expect(byHand).rejects.toThrow(NotAllowedError)
    expect(await commitDistributed(named, 'order')).toMatchObject({ state: 'committed' })
  })
})

describe('a connection that finished something', () => {
  it('is its login’s again, also when it failed', async () => {
    const urls = await newInstallation()
    const login = await createLogin('holdfast_app')
    const databases = new Databases(asLogin(urls, login), { staging: 1 })
    onTestFinished(() => databases.end())
    const { id: installation } = await checkSchema(databases)
    const { primary } = databases
    const next = async () => {
      const connection = await primary.staging.acquire()
      const [answer] = await connection.send('select pg_backend_pid() as pid, current_user as login')
      await primary.staging.release(connection, true)
      return answer?.[0] as { pid: number; login: string }
    }
    const { pid } = await next()
    const gid = (name: string) =>
      formatGid({
        installation,
        policy: 'presumed-abort',
        participant: 'primary',
        attempt: newAttempt(newOwnerId()),
        name,
      })
    const [absent, foreign, ours] = [gid('absent'), gid('foreign'), gid('ours')]
    await ownerOf(urls.primary ?? '').unsafe(`begin; prepare transaction '${foreign}'`)
    await ownerOf(urls.primary ?? '').unsafe(
      `begin; set local role holdfast_owner; prepare transaction '${ours}'`,
    )
    for (const finish of [commitPrepared, rollbackPrepared]) {
      expect(await finish(primary, absent)).toBe('absent')
      expect(await next()).toEqual({ pid, login: login.name })
      await expect(finish(primary, foreign)).rejects.toMatchObject(denied)
      expect(await next()).toEqual({ pid, login: login.name })
    }
    expect(await commitPrepared(primary, ours)).toBe('done')
    expect(await next()).toEqual({ pid, login: login.name })
    await ownerOf(urls.primary ?? '').unsafe(`rollback prepared '${foreign}'`)
  })
})

describe('the queues on PostgreSQL', () => {
  it('are an application’s to add to and to work on', async () => {
    const urls = await newDatabases()
    await migrateQueues(urls.primary ?? '')
    await migrateWithRoles(urls)
    const app = asLogin(urls, await createLogin('holdfast_app'))
    const queues = new Queues({
      redis: undefined,
      postgres: app.primary ?? '',
      installation: 'test',
      lockMs: 30_000,
      log: silent,
    })
    onTestFinished(() => queues.close())
    const seen: string[] = []
    await queues.work('jobs', 1, async ({ name, data }) => {
      seen.push(`${name} ${data.n}`)
    })
    await queues.add('jobs', { name: 'job', id: 'a', data: { n: '1' } })
    await queues.schedule('jobs', { name: 'tick', id: 'schedule', data: { n: '2' } }, 60_000)
    await vi.waitFor(() => expect(seen.toSorted()).toEqual(['job 1', 'tick 2']), { timeout: 60_000 })
    await queues.obliterate(['jobs'])
  })
})
