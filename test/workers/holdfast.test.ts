import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import { connect, createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Redis } from 'ioredis'
import postgres from 'postgres'
import { afterAll, describe, expect, inject, it, onTestFinished } from 'vitest'
import { freePort } from '../../src/db/embedded/free-port.ts'
import { startEmbedded } from '../../src/db/embedded/server.ts'
import { type CompensationContext, createHoldfast, defineBatch, defineJob, keyset } from '../../src/index.ts'
import { table } from '../../src/jobs/sinks/table.ts'
import { newDatabase } from '../support/database.ts'
import { meeting } from '../support/meeting.ts'
import { startRedis } from '../support/redis-server.ts'

process.env.LOG_LEVEL = 'silent'

const double = defineBatch({
  name: 'double',
  source: keyset<{ id: number }>({ table: 'numbers', key: ['id'] }),
  async process(rows, { tx, publish }) {
    await tx`insert into doubles ${tx(
      rows.map(({ id }) => ({ id: id * 2 })),
      'id',
    )}`
    await publish({ type: 'numbers.doubled', data: { count: rows.length } })
  },
})

/** So many at once: each waits, within its work, until all are there. */
async function together<T>(count: number, run: (i: number, meet: () => Promise<void>) => Promise<T>) {
  const meet = meeting(count)
  return Promise.all(Array.from({ length: count }, (_, i) => run(i, meet)))
}

describe('createHoldfast', () => {
  it('does as much at once as `connections` says, which is more than it does without', async () => {
    const config = { databases: { primary: await newDatabase() }, migrate: true }
    const hf = await createHoldfast({ ...config, connections: { idempotent: 11, distributed: 5 } })
    afterAll(() => hf.close())
    const calls = await together(11, (i, meet) =>
      hf.idempotent({ scope: 'all', key: `key ${i}` }, () => meet().then(() => i)),
    )
    expect(calls).toEqual(Array.from({ length: 11 }, (_, i) => ({ response: i, replayed: false })))
    // Jobs may run four more.
    const begun = await together(9, (i, meet) => hf.beginDistributed(`all_${i}`, () => meet().then(() => i)))
    expect(begun.map(({ staged }) => staged)).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8])
    await Promise.all(begun.map(({ name }) => hf.rollbackDistributed(name)))
  })

  it('begins, commits, publishes, runs batches and closes', async () => {
    const hf = await createHoldfast({
      databases: { primary: await newDatabase(), billing: await newDatabase('west') },
      batches: [double],
      sinks: { inbox: table({ database: 'billing' }) },
      migrate: true,
      timing: { assertEveryMs: 100, pollMs: 20 },
    })
    afterAll(() => hf.close())
    const begun = await hf.beginDistributed('setup', {
      primary: async (tx) => {
        await tx`create table numbers as select g as id from generate_series(1, 100) g`
        await tx`alter table numbers add primary key (id)`
        await tx`create table doubles (id int)`
        await hf.publish(tx, { type: 'setup.done', subject: 'setup' })
        return { tables: 2 }
      },
      billing: async (tx) => {
        await tx`create table invoices (id int)`
      },
    })
    expect(begun.staged).toEqual({ primary: { tables: 2 }, billing: undefined })
    expect(await hf.commitDistributed('setup')).toEqual({ state: 'committed', finished: 2, of: 2 })
    await hf.start()
    const { jobId } = await hf.batches.enqueue('double')
    await expect.poll(async () => (await hf.batches.get(jobId))?.status).toBe('completed')
    expect(await hf.batches.get('unknown')).toBeUndefined()
    // @ts-expect-error the config declares no such batch
    await expect(hf.batches.enqueue('tripple')).rejects.toMatchObject({ code: 'HOLDFAST_INVALID_CONFIG' })
    await hf.close()
    await hf.close()
  })

  it('compensates in whatever worker comes, cleans up on its schedule, and answers what became of it', async () => {
    const databases = { primary: await newDatabase() }
    const undone: string[] = []
    const undo = { compensate: ({ name }: CompensationContext) => void undone.push(name) }
    const producer = await createHoldfast({ databases, operations: { order: undo }, migrate: true })
    onTestFinished(() => producer.close())
    await producer.beginDistributed('order_1', async () => ({ charge: 7 }), { operation: 'order' })
    expect((await producer.outcome('order_1')).state).toBe('prepared')
    expect((await producer.listDistributed()).map((row) => [row.name, row.status])).toEqual([
      ['order_1', 'pending'],
    ])
    await producer.rollbackDistributed('order_1', 'customer cancelled')
    expect(undone).toEqual([])
    const worker = await createHoldfast({
      databases,
      operations: { order: undo },
      timing: { assertEveryMs: 50 },
    })
    onTestFinished(() => worker.close())
    await worker.start()
    await expect.poll(() => undone).toEqual(['order_1'])
    await expect.poll(async () => (await worker.listDistributed()).length).toBe(0)
    expect(await worker.metrics()).toContain('holdfast_distributed_transactions_open')
    const sql = postgres(databases.primary, { max: 1 })
    onTestFinished(() => sql.end())
    await expect
      .poll(async () => new Set((await sql`select job from holdfast.job_runs`).map((row) => row.job)))
      .toEqual(new Set(['clean-stale-transactions', 'expire-idempotency-keys']))
  })

  it('may be started again after a start that failed, at once or half-way', async () => {
    const primary = await newDatabase()
    const place = defineJob({ name: 'place', stage: () => null })
    const hf = await createHoldfast({ databases: { primary }, jobs: [place], migrate: true })
    onTestFinished(() => hf.close())
    const sql = postgres(primary, { max: 1, onnotice: () => undefined })
    onTestFinished(() => sql.end())
    await expect(hf.start({ queues: ['mial'] })).rejects.toMatchObject({ code: 'HOLDFAST_INVALID_CONFIG' })
    await expect(hf.start({ queues: 5 as never })).rejects.toThrow(TypeError)
    // What is asserted in the queues is looked at when their workers have begun.
    await sql`alter table holdfast.batch_jobs rename to hidden`
    const failing = [hf.start(), hf.start()]
    expect((await Promise.allSettled(failing)).map(({ status }) => status)).toEqual(['rejected', 'rejected'])
    await sql`alter table holdfast.hidden rename to batch_jobs`
    await hf.start()
    expect(await hf.jobs.wait(await hf.enqueue('place', null))).toMatchObject({ status: 'completed' })
  })

  it('does work once for each idempotency key', async () => {
    const hf = await createHoldfast({ databases: { primary: await newDatabase() }, migrate: true })
    onTestFinished(() => hf.close())
    const call = () =>
      hf.idempotent({ scope: 'shop', key: 'k', fingerprint: { total: 5 } }, async (tx) => {
        const [row] = await tx<{ xid: string }[]>`select pg_current_xact_id()::text as xid`
        return { xid: row?.xid ?? '' }
      })
    const first: { response: { xid: string }; replayed: boolean } = await call()
    expect(first.replayed).toBe(false)
    expect(await call()).toEqual({ ...first, replayed: true })
    expect(await hf.metrics()).toContain('holdfast_idempotent_calls_total{outcome="replayed"} 1')
  })

  it.runIf(inject('redis') !== undefined)('goes on when Redis forgets everything in the middle', async () => {
    const redis = await startRedis()
    if (!redis) throw new Error('there is no redis-server on the PATH')
    onTestFinished(() => redis.stop())
    const databases = { primary: await newDatabase() }
    const client = new Redis(redis.url)
    onTestFinished(() => client.disconnect())
    let forget = true
    const slow = defineBatch({
      name: 'slow',
      source: keyset<{ id: number }>({ table: 'numbers', key: ['id'] }),
      chunkSize: 10,
      async process(rows, { tx, chunk }) {
        await tx`insert into doubles ${tx(rows, 'id')}`
        if (chunk !== 3n || !forget) return
        forget = false
        await client.flushall()
        throw new Error('the job and its lock are gone')
      },
    })
    const hf = await createHoldfast({
      databases,
      redis: redis.url,
      batches: [slow],
      migrate: true,
      timing: { assertEveryMs: 50, lockMs: 500 },
    })
    onTestFinished(() => hf.close())
    const sql = postgres(databases.primary, { max: 1 })
    onTestFinished(() => sql.end())
    await sql`create table numbers as select g as id from generate_series(1, 100) g`
    await sql`alter table numbers add primary key (id)`
    await sql`create table doubles (id int)`
    await hf.start()
    expect((await hf.batches.wait(await hf.batches.enqueue('slow'))).status).toBe('completed')
    expect(await sql`select count(*)::int, count(distinct id)::int as ids from doubles`).toEqual([
      { count: 100, ids: 100 },
    ])
    // What the queues were told again.
    await expect.poll(async () => (await client.keys('*')).length).toBeGreaterThan(0)
  })

  it('says what to set where the server cannot prepare', async () => {
    const dir = await mkdtemp(join(tmpdir(), 'holdfast-no2pc-'))
    const server = await startEmbedded({ dir, settings: { max_prepared_transactions: '0' } })
    try {
      await expect(
        createHoldfast({ databases: { primary: server.url }, migrate: true }),
      ).rejects.toMatchObject({
        code: 'HOLDFAST_TWO_PHASE_DISABLED',
        message: expect.stringMatching(/max_prepared_transactions = 100.*restart/),
      })
    } finally {
      await server.release()
      await rm(dir, { recursive: true, force: true })
    }
  })

  it('works on the primary while another database is away, and with that one once it is back', async () => {
    const databases = { primary: await newDatabase(), billing: await newDatabase('west') }
    await (await createHoldfast({ databases, migrate: true })).close()
    const target = new URL(databases.billing)
    const proxy = createServer((socket) => {
      const upstream = connect(Number(target.port), target.hostname)
      for (const end of [socket, upstream]) end.on('error', () => undefined)
      socket.pipe(upstream).pipe(socket)
    })
    const port = await freePort()
    const billing = databases.billing.replace(target.host, `127.0.0.1:${port}`)
    const hf = await createHoldfast({ databases: { ...databases, billing } })
    onTestFinished(() => hf.close())
    await hf.beginDistributed('alone', async () => null)
    await hf.commitDistributed('alone')
    const both = { primary: async () => null, billing: async () => null }
    await expect(hf.beginDistributed('both', both)).rejects.toThrow('ECONNREFUSED')
    proxy.listen(port, '127.0.0.1')
    await once(proxy, 'listening')
    onTestFinished(() => void proxy.close())
    await hf.beginDistributed('both-there', both)
    expect(await hf.commitDistributed('both-there')).toMatchObject({ state: 'committed', finished: 2 })
  })

  it('fails cleanly where there is no server', async () => {
    const nowhere = createHoldfast({ databases: { primary: 'postgres://127.0.0.1:1/none' }, migrate: true })
    await expect(nowhere).rejects.toMatchObject({
      code: 'HOLDFAST_DATABASE_UNREACHABLE',
      message: expect.stringContaining('ECONNREFUSED 127.0.0.1:1') as string,
    })
    const url = new URL(await newDatabase())
    url.pathname = '/nothing-of-this-name'
    for (const migrate of [true, false]) {
      await expect(createHoldfast({ databases: { primary: url.href }, migrate })).rejects.toMatchObject({
        code: 'HOLDFAST_DATABASE_UNREACHABLE',
        message: expect.stringContaining('"nothing-of-this-name" does not exist') as string,
      })
    }
  })
})
