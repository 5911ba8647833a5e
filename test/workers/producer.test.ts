import { randomBytes } from 'node:crypto'
import { CompiledQuery, Kysely, PostgresDialect } from 'kysely'
import { Client, Pool } from 'pg'
import { describe, expect, it, onTestFinished, vi } from 'vitest'
import { z } from 'zod'
import { createHoldfast, createProducer, defineConfig, defineJob, type EventRunner } from '../../src/index.ts'
import { newDatabase } from '../support/database.ts'

process.env.LOG_LEVEL = 'silent'

const greet = defineJob({
  name: 'greet',
  input: z.object({ name: z.string() }),
  async stage({ tx, input }) {
    await tx`insert into greeted (name) values (${input.name})`
  },
})
const config = defineConfig({ jobs: [greet] })
type Config = typeof config

async function connect(url: string): Promise<Client> {
  const client = new Client({ connectionString: url })
  await client.connect()
  onTestFinished(() => client.end())
  return client
}

async function open() {
  const primary = await newDatabase()
  const timing = { assertEveryMs: 50 }
  const hf = await createHoldfast({ databases: { primary }, jobs: [greet], timing, migrate: true })
  onTestFinished(() => hf.close())
  const client = await connect(primary)
  await client.query('create table greeted (name text); create table orders (id int)')
  const producer = createProducer<Config>({ databases: { primary } })
  onTestFinished(() => producer.close())
  const query = async (text: string) => (await client.query<Record<string, unknown>>(text)).rows
  return { primary, hf, client, producer, query }
}

const event = { type: 'order.placed', subject: 'order-1', data: { id: 1 } }

describe('a producer', () => {
  it.each(['commit', 'rollback'] as const)(
    'does all in the transaction of a client, and its %s',
    async (end) => {
      const { client, producer, query } = await open()
      await client.query('begin')
      await client.query('insert into orders values (1)')
      const { jobId } = await producer.enqueue('greet', { name: 'Ada' }, { tx: client, priority: 3 })
      const [eventId] = await producer.publish(client, event)
      expect(await producer.once(client, 'shop', 'e1')).toBe(true)
      await client.query(end)
      const kept = end === 'commit'
      expect(await query('select id, name, input, priority, schedule from holdfast.jobs')).toEqual(
        kept ? [{ id: jobId, name: 'greet', input: { name: 'Ada' }, priority: 3, schedule: null }] : [],
      )
      expect(await query('select event_id, type from holdfast.outbox')).toEqual(
        kept ? [{ event_id: eventId, type: 'order.placed' }] : [],
      )
      expect(await producer.once(client, 'shop', 'e1')).toBe(!kept)
    },
  )

  it('has its jobs run by the workers of another process, and by itself is no process of the installation', async () => {
    const { hf, client, producer, query } = await open()
    const alone = await producer.enqueue('greet', { name: 'alone' })
    await client.query('begin')
    const within = await producer.enqueue('greet', { name: 'within' }, { tx: client })
    await client.query('commit')
    expect(await query('select 1 from holdfast.workers')).toEqual([])
    await hf.start()
    for (const job of [alone, within]) expect(await hf.jobs.wait(job)).toMatchObject({ status: 'completed' })
    expect(await query('select name from greeted order by name')).toEqual([
      { name: 'alone' },
      { name: 'within' },
    ])
  })

  it('takes a job whose input does not fit; the worker fails it at its first run, and says why', async () => {
    const { hf, producer, query } = await open()
    const wrong = await producer.enqueue('greet', { name: 7 } as unknown as { name: string })
    await hf.start()
    const job = await hf.jobs.wait(wrong)
    expect(job).toMatchObject({ status: 'failed', attempts: 1, input: { name: 7 } })
    expect(job.errors).toMatchObject([{ message: expect.stringMatching(/^input of greet: name: /) }])
    expect(await query('select name from greeted')).toEqual([])
    const notJson = producer.enqueue('greet', { name: 7n } as unknown as { name: string })
    await expect(notJson).rejects.toMatchObject({ code: 'HOLDFAST_INVALID_PAYLOAD' })
  })

  it('deduplicates, delays, and refuses options that are none', async () => {
    const { producer, query } = await open()
    const options = { deduplication: { id: 'ada' }, delayMs: 60_000 }
    const first = await producer.enqueue('greet', { name: 'Ada' }, options)
    expect(await producer.enqueue('greet', { name: 'Ada' }, options)).toEqual(first)
    expect(
      await query(`select run_at > created_at + interval '59 seconds' as late from holdfast.jobs`),
    ).toEqual([{ late: true }])
    await expect(producer.enqueue('greet', { name: 'Ada' }, { priority: -1 })).rejects.toMatchObject({
      code: 'HOLDFAST_INVALID_CONFIG',
    })
  })

  it('is content with a login that may do nothing else', async () => {
    const { primary, client, query } = await open()
    const role = `test_${randomBytes(6).toString('hex')}`
    await client.query(`
      create role ${role} login password '${role}';
      grant usage on schema holdfast to ${role};
      grant insert on holdfast.jobs, holdfast.outbox, holdfast.inbox_seen to ${role};
      grant usage on sequence holdfast.outbox_id to ${role}`)
    onTestFinished(async () => {
      const owner = new Client({ connectionString: primary })
      await owner.connect()
      await owner.query(`drop owned by ${role}; drop role ${role}`)
      await owner.end()
    })
    const url = Object.assign(new URL(primary), { username: role, password: role }).href
    const shop = await connect(url)
    const limited = createProducer<Config>({ databases: { primary: url } })
    onTestFinished(() => limited.close())
    await shop.query('begin')
    await limited.enqueue('greet', { name: 'within' }, { tx: shop })
    await limited.publish(shop, event)
    expect(await limited.once(shop, 'shop', 'e1')).toBe(true)
    await shop.query('commit')
    await limited.enqueue('greet', { name: 'alone' })
    expect(await query('select count(*)::int from holdfast.jobs')).toEqual([{ count: 2 }])
    expect(await query('select count(*)::int from holdfast.outbox')).toEqual([{ count: 1 }])
    await expect(shop.query('select * from holdfast.jobs')).rejects.toMatchObject({ code: '42501' })
  })

  it('refuses a pool, in which each statement would commit by itself', async () => {
    const { primary, producer, query } = await open()
    const pool = new Pool({ connectionString: primary })
    onTestFinished(() => pool.end())
    const calls = [
      producer.enqueue('greet', { name: 'Ada' }, { tx: pool }),
      producer.publish(pool, event),
      producer.once(pool, 'shop', 'e1'),
    ]
    for (const call of calls) await expect(call).rejects.toMatchObject({ code: 'HOLDFAST_INVALID_PAYLOAD' })
    expect(await query('select 1 from holdfast.jobs')).toEqual([])
  })

  it('works in a transaction of Kysely, and through what answers with the rows alone', async () => {
    const { primary, client, producer, query } = await open()
    const db = new Kysely<{ orders: { id: number } }>({
      dialect: new PostgresDialect({ pool: new Pool({ connectionString: primary }) }),
    })
    onTestFinished(() => db.destroy())
    const place = (id: number, fails: boolean) =>
      db.transaction().execute(async (trx) => {
        await trx.insertInto('orders').values({ id }).execute()
        const tx: EventRunner = {
          query: (text, values) => trx.executeQuery(CompiledQuery.raw(text, values)),
        }
        await producer.enqueue('greet', { name: `order ${id}` }, { tx })
        await producer.publish(tx, event)
        const isNew = await producer.once(tx, 'shop', 'e1')
        if (fails) throw new Error('undone')
        return isNew
      })
    await expect(place(1, true)).rejects.toThrow('undone')
    expect(await place(2, false)).toBe(true)
    // As TypeORM's manager and Prisma's raw client do.
    const rowsAlone: EventRunner = {
      query: async (text, values) => (await client.query(text, values)).rows,
    }
    await client.query('begin')
    const { jobId } = await producer.enqueue('greet', { name: 'rows' }, { tx: rowsAlone })
    await producer.publish(rowsAlone, event)
    expect(await producer.once(rowsAlone, 'shop', 'e1')).toBe(false)
    await client.query('commit')
    expect(jobId).toMatch(/^greet-/)
    expect(await query(`select input ->> 'name' as name from holdfast.jobs order by created_at`)).toEqual([
      { name: 'order 2' },
      { name: 'rows' },
    ])
    expect(await query('select count(*)::int from holdfast.outbox')).toEqual([{ count: 2 }])
  })

  it('connects for an enqueue without a transaction alone, and lets go of it when it is closed', async () => {
    const { producer, client, query } = await open()
    const connections = async () =>
      (
        await query(`select 1 from pg_stat_activity
          where datname = current_database() and application_name = 'holdfast primary' and query ~ 'holdfast.enqueue'`)
      ).length
    await producer.enqueue('greet', { name: 'Ada' }, { tx: client })
    expect(await connections()).toBe(0)
    await producer.enqueue('greet', { name: 'Ada' })
    expect(await connections()).toBe(1)
    await producer.close()
    await producer.close()
    await expect.poll(connections).toBe(0)
    await expect(producer.enqueue('greet', { name: 'Ada' })).rejects.toThrow('closed')
  })

  it('says what is missing: the schema, the URL', async () => {
    const primary = await newDatabase()
    const client = await connect(primary)
    const producer = createProducer<Config>({ databases: { primary } })
    onTestFinished(() => producer.close())
    const calls = [
      () => producer.enqueue('greet', { name: 'Ada' }),
      () => producer.enqueue('greet', { name: 'Ada' }, { tx: client }),
      () => producer.publish(client, event),
      () => producer.once(client, 'shop', 'e1'),
    ]
    for (const call of calls) await expect(call()).rejects.toMatchObject({ code: 'HOLDFAST_SCHEMA_OUTDATED' })
    await client.query('create schema holdfast')
    for (const call of calls) await expect(call()).rejects.toMatchObject({ code: 'HOLDFAST_SCHEMA_OUTDATED' })

    vi.stubEnv('DATABASE_URL', '')
    vi.stubEnv('HOLDFAST_DATABASE_PRIMARY_URL', '')
    onTestFinished(() => void vi.unstubAllEnvs())
    const without = { code: 'HOLDFAST_INVALID_CONFIG', message: expect.stringContaining('DATABASE_URL') }
    for (const options of [{}, { databases: { primary: 'embedded' } }])
      expect(() => createProducer(options)).toThrow(expect.objectContaining(without))
    expect(() => createProducer({ databases: { billing: primary } } as object)).toThrow('billing')
    vi.stubEnv('DATABASE_URL', primary)
    const byEnvironment = createProducer()
    onTestFinished(() => byEnvironment.close())
    await expect(byEnvironment.enqueue('greet', null)).rejects.toMatchObject({
      code: 'HOLDFAST_SCHEMA_OUTDATED',
    })
  })
})
