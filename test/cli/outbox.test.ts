import { randomUUID } from 'node:crypto'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir, userInfo } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { appendEvents } from '../../src/db/outbox.ts'
import { newDatabases, openContext } from '../support/database.ts'
import { HandCursor, holdCursors } from '../support/outbox-cursor.ts'
import { type Ended, HoldfastProcess } from '../support/process.ts'

const urls = await newDatabases()
const ctx = await openContext(urls)
const { primary } = ctx.databases
const { sql } = primary
const ids = await primary.transaction((tx) =>
  appendEvents(tx, [
    { type: 'order.placed', subject: 'a', data: { secret: 'of the customer' } },
    { type: 'order.paid', subject: 'a' },
  ]),
)
const [placed] = await sql<{ shard: number }[]>`select shard from holdfast.outbox limit 1`
const orders = await HandCursor.create(sql, 'orders', placed!.shard)

const cwd = await mkdtemp(join(tmpdir(), 'holdfast-outbox-'))
afterAll(() => rm(cwd, { recursive: true, force: true }))
await writeFile(
  join(cwd, 'holdfast.config.mjs'),
  `const open = async () => ({ publish: async () => ({ rejected: [] }), close: async () => {} })
   export default { databases: ${JSON.stringify(urls)}, sinks: { orders: { guarantee: 'none', open } } }`,
)

const holdfast = (...args: string[]) => new HoldfastProcess(['outbox', ...args], {}, cwd).ended
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
const audit = (action: string) => sql`
  select sink, actor, reason from holdfast.outbox_actions where action = ${action} order by id`
const reason = ['--reason', 'the account is there now']

describe('holdfast outbox', () => {
  it('explains each of its commands', async () => {
    const help = await holdfast('--help')
    expect(help).toMatchObject({ code: 0, stderr: '' })
    const commands = ['stats', 'dead', 'redrive', 'discard', 'replay', 'rebase', 'forget']
    for (const command of commands) expect(help.stdout).toContain(command)
    const own = await Promise.all(commands.map((command) => holdfast(command, '--help')))
    for (const ended of own)
      expect(ended).toMatchObject({ code: 0, stdout: expect.stringContaining('--json'), stderr: '' })
    expect(own[5]!.stdout).toMatch(/restored from a dump/)
  })

  it('answers wrong use with exit code 2 and what would be right', async () => {
    const id = randomUUID()
    const since = (time: string) => ['replay', 'orders', '--since', time, ...reason]
    const wrong: [string[], RegExp][] = [
      [[], /Usage:/],
      [['nonsense'], /error: /],
      [['dead', '--limit', '0'], /1 or more/],
      [['redrive', 'orders'], /--reason/],
      [['redrive', 'orders', '--reason', ' '], /--reason is empty/],
      [['redrive', 'orders', '--event', 'first', ...reason], /UUID/],
      [['discard', 'orders', ...reason], /either --event or --all/],
      [['discard', 'orders', '--all', '--event', id, ...reason], /either --event or --all/],
      [['replay', 'orders', ...reason], /either --since or --from/],
      [['replay', 'orders', '--from', id, '--since', '2020-01-01T00:00Z', ...reason], /either --since/],
      [since('yesterday'), /a time like/],
      [since('2020-01-01T12:00:00'), /zone.*end it with Z/],
      [since('2020-01-01'), /zone/],
      [since('9999-01-01T00:00:00Z'), /future/],
      [['rebase', 'orders'], /--reason/],
      [['forget', 'orders', ...reason], /config still has the sink orders/],
    ]
    const ended = await Promise.all(wrong.map(([args]) => holdfast(...args, '--json')))
    expect(ended.map((one, i) => ({ args: wrong[i]![0], ...one }))).toEqual(
      wrong.map(([args, stderr]) => ({
        args,
        code: 2,
        signal: null,
        stdout: '',
        stderr: expect.stringMatching(stderr),
      })),
    )
    expect(await sql`select from holdfast.outbox_actions`).toHaveLength(0)
  })

  it('shows how far each sink is', async () => {
    await orders.park('b', { dead: true })
    const stats = await json('stats')
    expect(stats).toMatchObject({
      cursors: [
        {
          sink: 'orders',
          shard: orders.shard,
          backlog: 2,
          backlogIsAtLeast: false,
          parked: 0,
          dead: 1,
          circuit: { state: 'closed' },
          epoch: 'events',
        },
      ],
      partitions: expect.arrayContaining([expect.objectContaining({ name: 'outbox_0' })]),
      oldestRowAt: expect.stringMatching(/Z$/),
    })
    const human = await holdfast('stats')
    expect(human).toMatchObject({ code: 0, stdout: '' })
    expect(human.stderr).toMatch(/^ {2}sink +shard +backlog +oldest +parked +dead +circuit/m)
    expect(human.stderr).toMatch(/^ {2}orders +\d +2 +\d+ (s|min) +0 +1 +closed +events +\d+ (s|min) ago$/m)
    await sql`delete from holdfast.outbox_parked`
  })

  it('lists what is dead, and with --parked what waits, without the data', async () => {
    const dead = await orders.park('b', { dead: true, reason: 'no such\naccount' })
    const behind = await orders.park('b')
    const list = await json('dead')
    expect(list).toMatchObject({
      more: false,
      events: [{ eventId: dead, key: 'b', attempts: 10, errors: [{ reason: 'no such\naccount' }] }],
    })
    expect(await json('dead', '--parked')).toMatchObject({ events: [{ eventId: dead }, { eventId: behind }] })
    expect(await json('dead', '--parked', '--limit', '1')).toMatchObject({
      more: true,
      events: [{ eventId: dead }],
    })
    expect(await json('dead', '--sink', 'mail')).toMatchObject({ events: [], stderr: 'nothing is there\n' })
    const human = await holdfast('dead', '--parked')
    expect(human.stderr).toMatch(
      new RegExp(
        `^ {2}${dead} +orders +\\d +order.placed +b +dead for \\d+ s +10 +\\d+ s ago +no such account$`,
        'm',
      ),
    )
    expect(human.stderr).toMatch(new RegExp(`^ {2}${behind} .* behind another `, 'm'))
    for (const text of [human.stderr, JSON.stringify(list)]) expect(text).not.toContain('of the customer')
    await sql`delete from holdfast.outbox_parked`
  })

  it('redrives and discards by hand, audited; a dry run does nothing; what was not dead is said', async () => {
    const [first, second] = [await orders.park('a', { dead: true }), await orders.park('b', { dead: true })]
    const dry = await json('redrive', 'orders', '--dry-run', ...reason)
    expect(dry).toMatchObject({ dryRun: true, events: [first, second] })
    expect(dry.stderr).toContain('nothing was changed')
    expect(await json('discard', 'orders', '--event', first, '--dry-run', ...reason)).toMatchObject({
      events: [first],
    })
    expect(await audit('redrive')).toEqual([])
    expect(await json('redrive', 'orders', '--event', first, ...reason)).toMatchObject({ count: 1 })
    const actor = expect.stringMatching(`/${userInfo().username}$`)
    expect(await audit('redrive')).toEqual([{ sink: 'orders', actor, reason: reason[1] }])
    const partly = await holdfast('redrive', 'orders', '--event', first, second, ...reason, '--json')
    expect(partly).toMatchObject({
      code: 1,
      stderr: expect.stringContaining('1 dead event of the 2 that were named'),
    })
    expect(read(partly)).toEqual({ sink: 'orders', dryRun: false, count: 1 })
    await orders.park('c', { dead: true })
    expect(await json('discard', 'orders', '--all', '--who', 'jo', ...reason)).toMatchObject({ count: 1 })
    expect(await audit('discard')).toMatchObject([{ actor: expect.stringMatching(/\/jo$/) }])
    expect(await holdfast('redrive', 'oders', '--dry-run', ...reason)).toMatchObject({
      code: 1,
      stderr: expect.stringMatching(/^HOLDFAST_UNKNOWN_SINK: .*those that have: orders/),
    })
    await sql`delete from holdfast.outbox_parked`
  })

  it('replays from an event or from a time', async () => {
    expect(await json('replay', 'orders', '--from', ids[1]!, ...reason)).toMatchObject({ event: ids[1] })
    expect(await sql`select since_id from holdfast.outbox_replays`).toEqual([{ since_id: '2' }])
    expect((await json('stats')).stderr).toContain('events, then a replay')
    const time = '2020-01-01T12:00:00+02:00'
    expect(await holdfast('replay', 'orders', '--since', time, ...reason)).toMatchObject({
      code: 1,
      stderr: expect.stringMatching(/^HOLDFAST_CURSOR_BUSY: /),
    })
    await sql`delete from holdfast.outbox_replays`
    const replay = await json('replay', 'orders', '--since', time, ...reason)
    expect(replay).toMatchObject({ sink: 'orders', since: '2020-01-01T10:00:00.000Z' })
    expect(await audit('replay')).toHaveLength(2)
  })

  it('says so when a page in doubt holds the cursor', async () => {
    const release = await holdCursors(primary.url)
    const refused = await holdfast('redrive', 'orders', ...reason, '--json')
    await release()
    expect(refused).toMatchObject({
      code: 1,
      stdout: '',
      stderr: expect.stringMatching(/^HOLDFAST_CURSOR_BUSY: .*holdfast tx list/),
    })
  })

  it('rebases, naming the cursors, and forgets a sink that the config does not have', async () => {
    const rebased = await json('rebase', 'orders', ...reason)
    expect(rebased).toMatchObject({ sink: 'orders', shards: [orders.shard] })
    expect(rebased.stderr).toContain(`rebased orders/${orders.shard}:`)
    expect(await json('stats')).toMatchObject({ cursors: [{ epoch: 'rebase', backlog: 2 }] })
    for (const shard of [0, 1]) await HandCursor.create(sql, 'former', shard)
    const forgot = await json('forget', 'former', ...reason)
    expect(forgot).toMatchObject({ sink: 'former', shards: [0, 1] })
    expect(forgot.stderr).toBe('forgot former/0, former/1\n')
    expect(await audit('forget')).toHaveLength(1)
    expect(await sql`select distinct sink from holdfast.outbox_cursors`).toEqual([{ sink: 'orders' }])
  })
})
