import { Client } from 'pg'
import type postgres from 'postgres'
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from 'vitest'
import { createClient } from '../../src/db/client.ts'
import { Databases, type Participant } from '../../src/db/databases.ts'
import { readThrottleSignals } from '../../src/db/throttle-signals.ts'
import { formatGid, newAttempt, newOwnerId } from '../../src/db/transaction-name.ts'
import { usePrivateServer } from '../support/private-server.ts'
import { createCluster, findPrograms, type SystemPostgres } from '../support/system-postgres.ts'

// The signals are the server's, so it is one that nobody else uses.
const server = usePrivateServer({ archive_mode: 'on', archive_command: 'true' })
const programs = await findPrograms()
const installation = newOwnerId()
let url: string
let participant: Participant
let databases: Databases

beforeAll(async () => {
  url = await server.newDatabase()
  databases = new Databases({ primary: url })
  participant = databases.primary
  await participant.sql`create table orders (id int primary key, n int default 0)`
  await participant.sql`insert into orders select generate_series(1, 3000)`
  await participant.sql`create table "Other Orders" (id int)`
})
afterAll(() => databases.end())

const read = (tables: string[] = []) => readThrottleSignals(participant, installation, tables)

/** A session of somebody else's. */
function session(to = url, application_name = 'a shop'): postgres.Sql {
  const sql = createClient(to, { max: 1, connection: { application_name } })
  onTestFinished(() => sql.end({ timeout: 0 }))
  return sql
}

/** Starts a statement that has to wait for a lock, and waits until it does. */
async function waitsFor(text: string): Promise<void> {
  const sql = session()
  const [me] = await sql<{ pid: number }[]>`select pg_backend_pid() as pid`
  void sql.unsafe(text).catch(() => undefined)
  onTestFinished(async () => {
    await participant.sql`select pg_terminate_backend(${me!.pid}, 5000)`
  })
  await expect
    .poll(() => participant.sql`select from pg_locks where pid = ${me!.pid} and not granted`, {
      interval: 10,
    })
    .toHaveLength(1)
}

const gidOf = (owner: string, name: string) =>
  formatGid({
    installation: owner,
    policy: 'commit-forward',
    participant: 'primary',
    attempt: newAttempt(newOwnerId()),
    name,
  })

async function prepare(gid: string, work: string): Promise<void> {
  await session().unsafe(`begin; ${work}; prepare transaction '${gid}'`)
  onTestFinished(async () => {
    await participant.sql.unsafe(`rollback prepared '${gid}'`)
  })
}

/** Uses up transaction ids. */
async function burn(count: number): Promise<void> {
  const sql = session()
  for (let i = 0; i < count; i++) await sql`select pg_current_xact_id()`
}

/** An ordinary login, which owns nothing and may see nothing of others. */
async function ordinaryLogin(): Promise<Participant> {
  await participant.sql.unsafe(`create role plain login password 'plain'`)
  const own = new URL(url)
  own.username = 'plain'
  own.password = 'plain'
  const plain = new Databases({ primary: own.href })
  onTestFinished(async () => {
    await plain.end()
    await participant.sql.unsafe('drop role plain')
  })
  return plain.primary
}

/**
 * A standby as the server sees one: it takes the log and says how far it has come. A real one would need a copy of the
 * whole cluster.
 */
async function fakeStandby(to: string, sql: Participant['sql'], name: string) {
  const standby = new URL(to)
  standby.searchParams.set('replication', 'true')
  const client = new Client({
    connectionString: standby.href,
    application_name: name,
  })
  client.on('error', () => undefined)
  await client.connect()
  // Only the extensions of the protocol speak in its own words.
  const { connection } = client as unknown as {
    connection: {
      sendCopyFromChunk(chunk: Buffer): void
      stream: { destroy(): void }
    }
  }
  const position = async () => {
    const [row] = await sql<{ lsn: string }[]>`select (pg_current_wal_lsn() - '0/0')::text as lsn`
    return BigInt(row!.lsn)
  }
  const start = await position()
  const hex = `${(start >> 32n).toString(16)}/${(start & 0xffffffffn).toString(16)}`
  void client.query(`START_REPLICATION PHYSICAL ${hex}`).catch(() => undefined)
  onTestFinished(async () => {
    connection.stream.destroy()
    await expect.poll(() => sql`select from pg_stat_replication`, { interval: 10 }).toHaveLength(0)
  })
  await expect
    .poll(() => sql`select from pg_stat_replication where state = 'streaming'`, { interval: 10 })
    .toHaveLength(1)
  /** Says that it has written, flushed and replayed up to there. */
  const confirm = (lsn: bigint) => {
    const status = Buffer.alloc(34)
    status.write('r')
    for (const offset of [1, 9, 17]) status.writeBigUInt64BE(lsn, offset)
    connection.sendCopyFromChunk(status)
  }
  return { confirm, position }
}

describe('a server at rest', () => {
  it('reads as nothing', async () => {
    const signals = await read(['orders', 'public.Other Orders'])
    expect(signals).toMatchObject({
      replicaLagMs: { value: 0 },
      replicaBehindBytes: { value: 0 },
      lockWaits: { value: 0 },
      vacuumed: { tables: [] },
    })
    expect(signals.replicaLagMs).not.toHaveProperty('unknown')
    expect(signals.vacuumed).not.toHaveProperty('unknown')
    expect(signals.xminAge.value).toBeLessThan(20)
  })

  it('says which table there is not', async () => {
    expect((await read(['orders', 'Orders', 'nowhere.orders'])).vacuumed).toEqual({
      tables: [],
      unknown: 'there is no table Orders, nowhere.orders',
    })
  })
})

describe('lock waits', () => {
  const value = async () => (await read()).lockWaits.value

  it('count who waits for a prepared transaction of ours, and behind one that does', async () => {
    await prepare(gidOf(installation, 'chunk_1'), 'update orders set n = 1 where id = 1')
    expect(await value()).toBe(0)
    await waitsFor('update orders set n = 2 where id = 1')
    expect(await value()).toBe(1)
    await waitsFor('update orders set n = 3 where id = 1')
    expect(await value()).toBe(2)
  })

  it('count who waits for the whole table, and who is kept out by that', async () => {
    await prepare(gidOf(installation, 'chunk_2'), 'update orders set n = 1 where id = 1')
    await waitsFor('alter table orders add column later int')
    expect(await value()).toBe(1)
    await waitsFor('select from orders')
    expect(await value()).toBe(2)
  })

  it.each([
    ['a foreign prepared transaction', () => 'somebody else'],
    ['one of another installation', () => gidOf(newOwnerId(), 'chunk_1')],
  ])('leave out who waits for %s', async (_what, gid) => {
    await prepare(gidOf(installation, 'chunk_3'), 'update orders set n = 1 where id = 1')
    await prepare(gid(), 'update orders set n = 1 where id = 2')
    await waitsFor('update orders set n = 2 where id = 2')
    expect(await value()).toBe(0)
  })

  it('count who waits for a running session of ours, and not for one of somebody else', async () => {
    const other = session()
    await other.unsafe('begin; update orders set n = 1 where id = 4')
    await waitsFor('update orders set n = 2 where id = 4')
    await participant.transaction(async (tx) => {
      await tx`update orders set n = 1 where id = 5`
      expect(await value()).toBe(0)
      await waitsFor('update orders set n = 2 where id = 5')
      expect(await value()).toBe(1)
    })
    // Another participant of an installation, or of another one.
    const elsewhere = session(url, 'holdfast billing')
    await elsewhere.unsafe('begin; update orders set n = 1 where id = 6')
    await waitsFor('update orders set n = 2 where id = 6')
    expect(await value()).toBe(0)
  })
})

describe('the xmin age', () => {
  it('is that of a snapshot that somebody holds', async () => {
    const sql = session()
    await sql`begin isolation level repeatable read`
    const [me] = await sql<{ pid: number }[]>`select pg_backend_pid() as pid from orders limit 1`
    await burn(100)
    const { xminAge } = await read()
    expect(xminAge).toEqual({ value: expect.any(Number), detail: `session ${me!.pid}` })
    expect(xminAge.value).toBeGreaterThanOrEqual(100)
    await sql`rollback`
    expect((await read()).xminAge.value).toBeLessThan(50)
  })

  it('is that of who wrote and does nothing now, without any snapshot', async () => {
    const sql = session()
    await sql.unsafe('begin; update orders set n = 1 where id = 7')
    await burn(100)
    expect((await read()).xminAge.value).toBeGreaterThanOrEqual(100)
  })

  it('is that of a prepared transaction, whoever’s', async () => {
    await prepare('an old one', 'update orders set n = 1 where id = 8')
    await burn(100)
    // The session of the test before may still be on its way out.
    await expect.poll(async () => (await read()).xminAge.detail).toBe('prepared transaction an old one')
    const { xminAge } = await read()
    expect(xminAge.value).toBeGreaterThanOrEqual(100)
  })
})

describe('vacuum', () => {
  async function vacuums(table: string): Promise<void> {
    const sql = session()
    const [me] = await sql<{ pid: number }[]>`select pg_backend_pid() as pid`
    // A tenth of a second for each page.
    await sql.unsafe('set vacuum_cost_delay = 100; set vacuum_cost_limit = 1')
    await participant.sql.unsafe(`update ${table} set id = id`)
    void sql.unsafe(`vacuum ${table}`).catch(() => undefined)
    onTestFinished(async () => {
      await participant.sql`select pg_terminate_backend(${me!.pid}, 5000)`
    })
    await expect
      .poll(() => participant.sql`select from pg_stat_progress_vacuum where pid = ${me!.pid}`, {
        interval: 10,
      })
      .toHaveLength(1)
  }

  it('is seen on the table that it works on, also by an ordinary login', async () => {
    const plain = await ordinaryLogin()
    await vacuums('orders')
    for (const who of [participant, plain]) {
      const { vacuumed } = await readThrottleSignals(who, installation, ['public.orders', 'Other Orders'])
      expect(vacuumed).toEqual({ tables: ['public.orders'] })
    }
  })

  it('is seen on a partition of the table, and is no old xmin', async () => {
    await participant.sql`create table parts (id int) partition by range (id)`
    await participant.sql`create table part_1 partition of parts for values from (0) to (10000)`
    await participant.sql`insert into parts select generate_series(1, 3000)`
    await vacuums('part_1')
    await burn(100)
    const { vacuumed, xminAge } = await read(['parts', 'orders'])
    expect(vacuumed).toEqual({ tables: ['parts'] })
    expect(xminAge.value).toBeLessThan(100)
  })

  it('is not seen where a table is merely analyzed or locked', async () => {
    await participant.transaction(async (tx) => {
      await tx`lock table orders in share update exclusive mode`
      expect((await read(['orders'])).vacuumed).toEqual({ tables: [] })
    })
  })
})

describe('the WAL backlog', () => {
  it('is what a slot keeps', async () => {
    const { sql } = participant
    await sql`select pg_create_physical_replication_slot('forgotten', true)`
    onTestFinished(async () => {
      await sql`select pg_drop_replication_slot('forgotten')`
    })
    const before = (await read()).walBacklogBytes.value!
    await sql`select pg_logical_emit_message(true, 'test', repeat('x', 3000000))`
    const { walBacklogBytes } = await read()
    expect(walBacklogBytes).toMatchObject({ detail: 'replication slot forgotten' })
    expect(walBacklogBytes.value! - before).toBeGreaterThanOrEqual(3_000_000)
    expect(walBacklogBytes.value! - before).toBeLessThan(20_000_000)
  })

  it('is unknown until the archiver has archived something, and then what it has not', async () => {
    const { sql } = participant
    expect((await read()).walBacklogBytes).toMatchObject({
      value: 0,
      unknown: expect.stringContaining('archived nothing'),
    })
    const segment = async () => {
      await sql`select pg_logical_emit_message(true, 'test', 'x')`
      await sql`select pg_switch_wal()`
    }
    await segment()
    await expect.poll(async () => (await read()).walBacklogBytes, { interval: 50 }).toEqual({ value: 0 })
    await sql`alter system set archive_command = 'false'`
    await sql`select pg_reload_conf()`
    // The archiver may still take one with its old command.
    await expect
      .poll(
        async () => {
          await segment()
          return sql`select from pg_stat_archiver where failed_count > 0`
        },
        { interval: 50 },
      )
      .toHaveLength(1)
    const before = (await read()).walBacklogBytes
    const size = 16 * 1024 * 1024
    expect(before.detail).toBe('archiver')
    expect(before.value! % size).toBe(0)
    await segment()
    expect((await read()).walBacklogBytes).toEqual({ value: before.value! + size, detail: 'archiver' })
  })
})

describe('the standbys', () => {
  /** Has a standby come, fall behind and catch up; returns the lag that was read, and the server's own word for it. */
  async function follow(to: string, who: Participant) {
    const { sql } = who
    const signals = () => readThrottleSignals(who, installation)
    const standby = await fakeStandby(to, sql, 'replica-1')
    // It takes the log and has replayed nothing: it may be a pg_receivewal.
    expect((await signals()).replicaLagMs).toEqual({ value: 0 })
    // Twice all of it, and the server forgets the last lag. What it writes by itself in between is confirmed with the next.
    const forgets = async () => {
      standby.confirm(await standby.position())
      const idle =
        await sql`select from pg_stat_replication where replay_lsn is not null and replay_lag is null`
      return idle.length === 1 && (await signals()).replicaLagMs
    }
    await expect.poll(forgets, { interval: 10 }).toEqual({ value: 0, detail: 'standby replica-1' })
    await sql`select pg_logical_emit_message(true, 'test', repeat('x', 100000))`
    const { replicaBehindBytes, replicaLagMs } = await signals()
    expect(replicaBehindBytes.detail).toBe('standby replica-1')
    expect(replicaBehindBytes.value).toBeGreaterThanOrEqual(100_000)
    expect(replicaLagMs).toEqual({ value: undefined, unknown: 'standby replica-1 has not reported it' })
    standby.confirm(await standby.position())
    await expect
      .poll(async () => (await signals()).replicaLagMs, { interval: 10 })
      .toEqual({ value: expect.any(Number), detail: 'standby replica-1' })
    const [row] = await sql<{ ms: number }[]>`
      select extract(epoch from replay_lag)::float8 * 1000 as ms from pg_stat_replication`
    return { read: (await signals()).replicaLagMs.value, reported: row!.ms }
  }

  it('are read as they report', async () => {
    const lag = await follow(url, participant)
    expect(lag.read).toBe(lag.reported)
  })

  it('are unknown to an ordinary login, which says so', async () => {
    const plain = await ordinaryLogin()
    const signals = () => readThrottleSignals(plain, installation)
    expect((await signals()).replicaLagMs).toEqual({ value: 0 })
    await fakeStandby(url, participant.sql, 'replica-1')
    const unknown = { value: undefined, unknown: expect.stringContaining('pg_read_all_stats') }
    expect(await signals()).toMatchObject({ replicaLagMs: unknown, replicaBehindBytes: unknown })
  })

  it.runIf(programs)('and all else are read from the system’s PostgreSQL too', async () => {
    const cluster: SystemPostgres = await createCluster(programs!)
    onTestFinished(() => cluster.remove())
    await cluster.start()
    const older = new Databases({ primary: cluster.url })
    onTestFinished(() => older.end())
    await older.primary.sql`create table orders (id int)`
    expect(await readThrottleSignals(older.primary, installation, ['orders'])).toMatchObject({
      lockWaits: { value: 0 },
      vacuumed: { tables: [] },
      walBacklogBytes: { value: 0 },
    })
    const lag = await follow(cluster.url, older.primary)
    expect(lag.read).toBe(lag.reported)
  })
})

describe('an ordinary login', () => {
  it('sees lock waits and old transactions of others', async () => {
    const plain = await ordinaryLogin()
    await prepare(gidOf(installation, 'chunk_1'), 'update orders set n = 1 where id = 9')
    await burn(100)
    await waitsFor('update orders set n = 2 where id = 9')
    const signals = await readThrottleSignals(plain, installation)
    expect(signals.lockWaits).toEqual({ value: 1 })
    expect(signals.xminAge.value).toBeGreaterThanOrEqual(100)
    const sql = session()
    await sql.unsafe(`set application_name = 'holdfast primary'`)
    await sql.unsafe('begin; update orders set n = 1 where id = 10')
    await waitsFor('update orders set n = 2 where id = 10')
    expect((await readThrottleSignals(plain, installation)).lockWaits).toEqual({ value: 2 })
  })
})
