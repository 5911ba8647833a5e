import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { createServer, type Socket } from 'node:net'
import { tmpdir, userInfo } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { createClient } from '../../src/db/client.ts'
import { formatGid, newAttempt, newOwnerId } from '../../src/db/transaction-name.ts'
import type { Tx } from '../../src/db/tx.ts'
import { beginDistributed } from '../../src/jobs/begin.ts'
import { move, setAside } from '../../src/jobs/move.ts'
import { recover } from '../../src/jobs/recovery.ts'
import { newDatabases, openContext } from '../support/database.ts'
import { preparedGids } from '../support/prepared-gids.ts'
import { type Ended, HoldfastProcess } from '../support/process.ts'

const urls = await newDatabases({ billing: 'west' })
const ctx = await openContext(urls)
const { primary } = ctx.databases
for (const participant of ctx.databases.all)
  await participant.sql`create table orders (name text primary key)`

async function folder(databases: Record<string, string>): Promise<string> {
  const dir = await mkdtemp(join(tmpdir(), 'holdfast-tx-'))
  afterAll(() => rm(dir, { recursive: true, force: true }))
  await writeFile(
    join(dir, 'holdfast.config.mjs'),
    `export default ${JSON.stringify({ databases, timing: { leaseMs: 60_000 } })}`,
  )
  return dir
}
const cwd = await folder(urls)

const holdfast = (...args: string[]) => new HoldfastProcess(args, {}, cwd).ended
/** Ended with 0; what the last line of standard output says, which is the only one. */
async function json(...args: string[]): Promise<Record<string, unknown> & { stderr: string }> {
  const ended = await holdfast(...args, '--json')
  expect(ended).toMatchObject({ code: 0 })
  return { ...read(ended), stderr: ended.stderr }
}
function read({ stdout }: Ended): Record<string, unknown> {
  expect(stdout.trimEnd().split('\n')).toHaveLength(1)
  return JSON.parse(stdout) as Record<string, unknown>
}
const insert = (name: string) => (tx: Tx) => tx`insert into orders values (${name})`
const begin = (name: string, options = {}) =>
  beginDistributed(ctx, name, { primary: insert(name), billing: insert(name) }, options)
const gidsOf = async (name: string) => (await preparedGids(ctx)).filter((gid) => gid.endsWith(`/${name}`))
const statusOf = async (name: string) =>
  (
    await primary.sql`select status, quarantine from holdfast.distributed_transactions where name = ${name}`
  )[0]

// Of somebody else, in our database, through all of these tests.
const attempt = newAttempt(newOwnerId())
const foreign = `somebody-else-${attempt}`
const theirs = formatGid({
  installation: newOwnerId(),
  policy: 'commit-forward',
  participant: 'primary',
  attempt,
  name: 'theirs',
})
const stranger = createClient(urls.primary!, { max: 1 })
for (const [i, gid] of [foreign, theirs].entries())
  await stranger.unsafe(`begin; create table foreign_${i} (); prepare transaction '${gid}'`)
afterAll(async () => {
  // Untouched by every command.
  for (const gid of [foreign, theirs]) await stranger.unsafe(`rollback prepared '${gid}'`)
  await stranger.end()
})

describe('holdfast tx', () => {
  it('explains each of its commands', async () => {
    const help = await holdfast('tx', '--help')
    expect(help).toMatchObject({ code: 0, stderr: '' })
    const commands = ['list', 'show', 'commit', 'rollback', 'recover']
    for (const command of commands) expect(help.stdout).toContain(command)
    const all = [...commands.map((command) => ['tx', command]), ['cleanup', 'run']]
    const own = await Promise.all(all.map((args) => holdfast(...args, '--help')))
    for (const ended of own)
      expect(ended).toMatchObject({ code: 0, stdout: expect.stringContaining('--json'), stderr: '' })
  })

  it('answers wrong use with exit code 2 and what would be right', async () => {
    const wrong = [
      ['tx'],
      ['tx', 'nonsense'],
      ['tx', 'show'],
      ['tx', 'list', '--limit', '0'],
      ['tx', 'list', '--status', 'lost'],
      ['tx', 'commit', 'order_1'],
      ['tx', 'rollback', 'order_1'],
      ['tx', 'commit', 'order_1', '--reason', ' '],
      ['tx', 'recover', 'order_1'],
      ['cleanup'],
    ]
    const ended = await Promise.all(
      wrong.map(async (args) => ({ args, ...(await holdfast(...args, '--json')) })),
    )
    expect(ended).toEqual(
      wrong.map((args) => ({
        args,
        code: 2,
        signal: null,
        stdout: '',
        stderr: expect.stringMatching(/error: |Usage:|HOLDFAST_INVALID_CONFIG/),
      })),
    )
  })

  it('lists what is open, and apart from it what it never touches', async () => {
    await begin('listed')
    const list = await json('tx', 'list')
    expect(list.transactions).toMatchObject([{ name: 'listed', status: 'pending' }])
    expect(list.otherInstallations).toContainEqual(expect.objectContaining({ gid: theirs }))
    expect(list.foreign).toContainEqual(
      expect.objectContaining({ gid: foreign, database: expect.any(String) }),
    )
    const human = await holdfast('tx', 'list')
    expect(human).toMatchObject({ code: 0, stdout: '' })
    expect(human.stderr).toMatch(/^ {2}name +status +age +participants/m)
    expect(human.stderr).toMatch(/^ {2}listed +pending /m)
    for (const gid of [foreign, theirs])
      expect(human.stderr.indexOf(gid)).toBeGreaterThan(human.stderr.indexOf('never touched'))
  })

  it('shows one, who waits for it and what to do, and runs what it recommends', async () => {
    await begin('shown')
    const waiter = createClient(urls.primary!, { max: 1, connection: { application_name: 'a patient one' } })
    const waiting = waiter`insert into orders values ('shown')`.catch((error: unknown) => error)
    const locks = () => primary.sql`
      select from pg_stat_activity where application_name = 'a patient one' and wait_event_type = 'Lock'`
    await expect.poll(async () => (await locks()).length).toBe(1)
    const shown = await json('tx', 'show', 'shown')
    expect(shown).toMatchObject({
      transaction: { status: 'pending', recorded: 'pending', decision: null },
      outcome: { state: 'prepared' },
      events: [{ event: 'started' }, { event: 'pending' }],
      advice: { kind: 'decide', commands: [`holdfast tx commit shown --reason '…'`, expect.any(String)] },
    })
    const [onPrimary] = (shown.prepared as { participant: string; blastRadius: unknown }[]).filter(
      (p) => p.participant === 'primary',
    )
    expect(onPrimary?.blastRadius).toMatchObject({
      tables: expect.arrayContaining(['public.orders']),
      waiting: 1,
      waiters: [{ application: 'a patient one' }],
    })
    expect(shown.stderr).toContain('a patient one')
    expect(shown.stderr).toMatch(/public\.orders +RowExclusiveLock +1/)
    expect(await json('tx', 'commit', 'shown', '--reason', 'seen')).toMatchObject({ state: 'committed' })
    expect(await waiting).toMatchObject({ code: '23505' })
    await waiter.end()
    expect(await json('tx', 'show', 'shown')).toMatchObject({
      outcome: { state: 'committed' },
      prepared: [],
      advice: { kind: 'nothing', commands: [] },
    })
  })

  it('commits and rolls back by hand, audited; never against a decision; a dry run does nothing', async () => {
    await begin('hand')
    expect(await json('tx', 'rollback', 'hand', '--reason', 'why not', '--dry-run')).toMatchObject({
      state: 'would decide',
    })
    expect(await gidsOf('hand')).toHaveLength(2)
    expect(await json('tx', 'rollback', 'hand', '--reason', 'gone')).toMatchObject({ state: 'rolled_back' })
    expect(await gidsOf('hand')).toEqual([])
    const [audit] = await primary.sql`
      select actor, detail->>'why' as why from holdfast.transaction_events
      where name = 'hand' and event = 'decided_by_hand'`
    expect(audit).toEqual({ actor: expect.stringMatching(`/${userInfo().username}$`), why: 'gone' })
    expect(await holdfast('tx', 'commit', 'hand', '--reason', 'x', '--json')).toMatchObject({
      code: 1,
      stdout: '',
      stderr: expect.stringMatching(/^HOLDFAST_ROLLED_BACK: hand is decided/),
    })
    await begin('hand_2')
    await holdfast('tx', 'rollback', 'hand_2', '--reason', 'x', '--who', 'jo')
    const [other] = await primary.sql`
      select actor from holdfast.transaction_events where name = 'hand_2' and event = 'decided_by_hand'`
    expect(other?.actor).toMatch(/\/jo$/)
    expect(await holdfast('tx', 'show', 'never_begun')).toMatchObject({
      code: 1,
      stderr: expect.stringMatching(/^HOLDFAST_UNKNOWN_TRANSACTION: /),
    })
  })

  it('recovers, once without a name, and what was set aside by its name', async () => {
    const stuck = await begin('stuck')
    await move(ctx, stuck.attempt, 'decide-commit', { decision: 'commit' })
    expect(await json('tx', 'recover')).toMatchObject({
      report: { committed: 1, failed: 0 },
      transaction: null,
    })
    const aside = await begin('aside')
    await setAside(ctx, aside.attempt, 'for a test')
    expect(await json('tx', 'list', '--status', 'requires_manual_intervention')).toMatchObject({
      transactions: [{ name: 'aside', quarantine: 'for a test' }],
    })
    expect(await json('tx', 'recover', 'aside', '--reason', 'looked')).toMatchObject({
      released: true,
      transaction: { name: 'aside', status: 'pending', quarantine: null },
    })
    await holdfast('tx', 'rollback', 'aside', '--reason', 'x')
  })

  it('reports what was finished by psql against the decision, and fails until it is made good', async () => {
    const { attempt } = await begin('heuristic')
    const [gid] = (await gidsOf('heuristic')).filter((one) => one.includes('/billing/'))
    await ctx.databases.get('billing').sql.unsafe(`rollback prepared '${gid}'`)
    await move(ctx, attempt, 'decide-commit', { decision: 'commit' })
    await recover(ctx)
    const listed = await json('tx', 'list')
    expect(listed.transactions).toContainEqual(
      expect.objectContaining({
        name: 'heuristic',
        status: 'requires_manual_intervention',
        quarantine: expect.stringContaining('rolled back by hand'),
      }),
    )
    expect(await json('tx', 'show', 'heuristic')).toMatchObject({
      heuristic: [{ detail: { outcome: 'heuristic', participant: 'billing' } }],
      advice: { kind: 'check', why: expect.stringContaining('billing') },
    })
    const again = await holdfast('tx', 'recover', 'heuristic', '--reason', 'again', '--json')
    expect(again.code).toBe(1)
    expect(read(again)).toMatchObject({ transaction: { status: 'requires_manual_intervention' } })
    await primary.sql`delete from holdfast.distributed_transactions where name = 'heuristic'`
  })

  it('takes down that a compensation was done by hand', async () => {
    await begin('refunded')
    await holdfast('tx', 'rollback', 'refunded', '--reason', 'x')
    const given = ['tx', 'recover', 'refunded', '--compensated', '--reason', 'refunded by phone']
    expect((await holdfast(...given)).stderr).toContain('refunded: has no compensation that was given up')
    await primary.sql`
      update holdfast.distributed_transactions set compensation = 'failed', quarantine = 'given up' where name = 'refunded'`
    expect((await json('tx', 'show', 'refunded')).advice).toMatchObject({
      kind: 'compensate',
      commands: [expect.stringContaining('recover refunded'), expect.stringContaining('--compensated')],
    })
    expect((await holdfast(...given)).stderr).toContain('refunded: recorded as compensated')
    expect(await statusOf('refunded')).toEqual({ status: 'rolled_back', quarantine: null })
    expect(await json('tx', 'show', 'refunded')).toMatchObject({ advice: { kind: 'nothing' } })
    const nameless = await holdfast('tx', 'recover', '--compensated', '--reason', 'x')
    expect(nameless).toMatchObject({ code: 2, stderr: expect.stringContaining('needs the name') as string })
  })

  it('waits with a restored server until its timeline is confirmed', async () => {
    const { attempt } = await begin('restored')
    await move(ctx, attempt, 'decide-commit', { decision: 'commit' })
    await primary.sql`update holdfast.timelines set timeline = timeline + 1 where participant = 'billing'`
    const paused = await holdfast('tx', 'recover', '--json')
    expect(read(paused)).toMatchObject({ report: { committed: 0, left: 2 } })
    expect(paused.stderr).toContain('"alert":"timeline_changed"')
    expect(await gidsOf('restored')).toHaveLength(1)
    const confirm = 'holdfast tx recover --confirm-timeline billing'
    expect(await json('tx', 'show', 'restored')).toMatchObject({
      paused: { billing: expect.any(String) },
      advice: { kind: 'confirm', commands: [confirm] },
    })
    expect((await json('tx', 'list')).unavailable).toHaveProperty('billing')
    expect(
      await json('tx', 'recover', '--confirm-timeline', 'billing', '--reason', 'compared'),
    ).toMatchObject({
      confirmed: { timeline: expect.any(Number) },
      report: { committed: 1, left: 1 },
    })
    expect(await statusOf('restored')).toEqual({ status: 'committed', quarantine: null })
    const [row] = await primary.sql`select confirmed_by from holdfast.timelines where participant = 'billing'`
    expect(row?.confirmed_by).toBe(`${userInfo().username}: compared`)
  })

  it('lists and shows although a database does not answer', async () => {
    const silent = new Set<Socket>()
    const server = createServer((socket) => silent.add(socket)).listen(0, '127.0.0.1')
    await new Promise((resolve) => server.once('listening', resolve))
    const { port } = server.address() as { port: number }
    const dir = await folder({ ...urls, billing: `postgres://x@127.0.0.1:${port}/x` })
    const list = await new HoldfastProcess(['tx', 'list', '--json'], {}, dir).ended
    expect(list.code).toBe(0)
    expect(read(list)).toMatchObject({
      transactions: [{ name: 'listed' }],
      unavailable: { billing: expect.any(String) },
    })
    const show = await new HoldfastProcess(['tx', 'show', 'listed', '--json'], {}, dir).ended
    expect(read(show)).toMatchObject({ outcome: { state: 'unknown' }, advice: { kind: 'reach' } })
    for (const socket of silent) socket.destroy()
    server.close()
  })
})

describe('holdfast cleanup run', () => {
  it('recovers, removes what is old, and says what it did', async () => {
    await begin('late', { deadlineMs: 1 })
    const done = await begin('old')
    await holdfast('tx', 'commit', 'old', '--reason', 'x')
    await primary.sql`
      update holdfast.distributed_transactions set updated_at = updated_at - interval '31 days'
      where attempt = ${done.attempt}`
    await primary.sql`
      insert into holdfast.idempotency_keys (scope, key, token, fingerprint, lease_until, expires_at, response)
      values ('s', 'k', 1, '', clock_timestamp(), clock_timestamp(), '1')`
    const report = await json('cleanup', 'run')
    expect(report).toMatchObject({ rolledBack: 1, failed: 0, transactions: 1, keys: 1 })
    expect(report.stderr).toContain('1 idempotency keys')
    expect(report.stderr).toContain('1 rolled back')
    expect(await statusOf('late')).toMatchObject({ status: 'cleaned_up' })
    expect(await statusOf('old')).toBeUndefined()
    const leases = await primary.sql`select from holdfast.workers where id <> ${ctx.lease.id}`
    expect(leases).toHaveLength(0)
    await holdfast('tx', 'rollback', 'listed', '--reason', 'the end')
    expect((await preparedGids(ctx)).toSorted()).toEqual([foreign, theirs].toSorted())
  })
})

describe('on the embedded server', () => {
  it('leaves no server behind', async () => {
    const dir = await mkdtemp(join(tmpdir(), 'holdfast-tx-'))
    afterAll(() => rm(dir, { recursive: true, force: true }))
    expect(await new HoldfastProcess(['migrate'], {}, dir).ended).toMatchObject({ code: 0 })
    const list = await new HoldfastProcess(['tx', 'list', '--json'], {}, dir).ended
    expect(list).toMatchObject({ code: 0, stderr: 'nothing is open, nothing is prepared\n' })
    const { readdir } = await import('node:fs/promises')
    const files = await readdir(join(dir, '.holdfast'), { recursive: true })
    expect(files.filter((file) => file.endsWith('postmaster.pid'))).toEqual([])
  })
})
