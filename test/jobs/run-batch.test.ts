import { describe, expect, it } from 'vitest'
import { z } from 'zod'
import { InvalidConfigError, InvalidPayloadError } from '../../src/db/errors.ts'
import { watchSteps } from '../../src/db/steps.ts'
import { type BatchDefinition, defineBatch } from '../../src/jobs/batch-definition.ts'
import type { JobContext } from '../../src/jobs/context.ts'
import { enqueueBatchJob } from '../../src/jobs/enqueue-batch.ts'
import { keyset } from '../../src/jobs/keyset.ts'
import { runBatch } from '../../src/jobs/run-batch.ts'
import { newDatabases, openContext } from '../support/database.ts'
import { preparedGids } from '../support/prepared-gids.ts'
import { copyBatch } from '../support/scenarios.ts'

const signal = new AbortController().signal
const timing = { maxFailures: 3, backoffMs: 1, maxBackoffMs: 5 }

async function run(ctx: JobContext, batch: BatchDefinition, params: unknown = {}) {
  const { jobId } = await enqueueBatchJob(ctx, batch, params, 'test')
  return { jobId, outcome: await runBatch(ctx, new Map([[batch.name, batch]]), jobId, signal, timing) }
}

const statusOf = async (ctx: JobContext, jobId: string) =>
  (await ctx.databases.primary.sql`select status, error from holdfast.batch_jobs where id = ${jobId}`)[0]

describe('keyset', () => {
  it.each([
    ['integer', 'id integer primary key', ['id'], 'select g as id'],
    ['bigint beyond 2^53', 'id bigint primary key', ['id'], 'select 9007199254740993 + g as id'],
    ['uuid', 'id uuid primary key', ['id'], 'select gen_random_uuid() as id'],
    ['text', 'id text primary key', ['id'], `select 'it''s "' || g as id`],
    [
      'timestamp with microseconds',
      'id timestamptz primary key',
      ['id'],
      `select now() + g * interval '1 microsecond' as id`,
    ],
    [
      'composite',
      'a int not null, b text not null, primary key (a, b)',
      ['a', 'b'],
      `select g % 3 as a, 'x' || g as b`,
    ],
  ])('reads every row once by a key of type %s', async (_what, columns, key, rows) => {
    const ctx = await openContext(await newDatabases())
    const { sql } = ctx.databases.primary
    await sql.unsafe(`create table "Some Source" (${columns})`)
    await sql.unsafe(`insert into "Some Source" ${rows} from generate_series(1, 95) g`)
    await sql.unsafe(`create table seen (${columns.replace(/,? ?primary key( \(.*\))?/, '')})`)
    const batch = defineBatch({
      name: 'read',
      source: keyset({ table: 'Some Source', key }),
      chunkSize: 10,
      async process(chunk, { tx }) {
        for (const row of chunk) expect(Object.keys(row)).toEqual(key)
        await tx`insert into seen ${tx(chunk, ...key)}`
      },
    })
    // A Date would lose the microseconds: copy by the database where the key is one.
    const byDatabase: BatchDefinition = {
      ...batch,
      async process(chunk, { tx }) {
        await tx.unsafe(`insert into seen select ${key.join(', ')} from "Some Source" order by ${key.join(', ')}
          limit ${chunk.length} offset (select count(*) from seen)`)
      },
    }
    expect((await run(ctx, columns.includes('timestamptz') ? byDatabase : batch)).outcome).toBe('completed')
    const list = key.join(', ')
    expect(await sql.unsafe(`select ${list} from seen order by ${list}`)).toEqual(
      await sql.unsafe(`select ${list} from "Some Source" order by ${list}`),
    )
  })

  it('refuses a table or column that is not there, and a key that may be null', async () => {
    const ctx = await openContext(await newDatabases())
    await ctx.databases.primary.sql`create table nullable (id int)`
    for (const [table, column, advice] of [
      ['nowhere', 'id', 'no table nowhere'],
      ['nullable', 'key', 'no column key'],
      ['nullable', 'id', 'may be null'],
    ] as const) {
      const batch = defineBatch({ name: 'bad', source: keyset({ table, key: [column] }), async process() {} })
      const { jobId, outcome } = await run(ctx, batch)
      expect(outcome).toBe('failed')
      expect((await statusOf(ctx, jobId))?.error).toContain(advice)
    }
    expect(() => keyset({ table: 'a.b.c', key: ['id'] })).toThrow(InvalidConfigError)
    expect(() => keyset({ table: 'a', key: [] })).toThrow(InvalidConfigError)
  })
})

describe('a run', () => {
  it('with nothing to do completes', async () => {
    const ctx = await openContext(await newDatabases())
    await ctx.databases.primary.sql`create table source (id int primary key)`
    const { jobId, outcome } = await run(ctx, copyBatch)
    expect(outcome).toBe('completed')
    expect(await statusOf(ctx, jobId)).toEqual({ status: 'completed', error: null })
  })

  it('that fails keeps what it had committed, says why, and leaves nothing prepared', async () => {
    const ctx = await openContext(await newDatabases())
    const { sql } = ctx.databases.primary
    await sql`create table source (id int primary key)`
    await sql`create table target (id int check (id <> 25))`
    await sql`insert into source select generate_series(1, 47)`
    const { jobId, outcome } = await run(ctx, copyBatch)
    expect(outcome).toBe('failed')
    expect(await statusOf(ctx, jobId)).toMatchObject({
      status: 'failed',
      error: expect.stringContaining('check'),
    })
    // The row that fails is known, and all before it is done.
    expect(await sql`select max(id) from target`).toEqual([{ max: 24 }])
    expect(await preparedGids(ctx)).toEqual([])
  })

  it('that is stopped goes on where it was', async () => {
    const ctx = await openContext(await newDatabases())
    const { sql } = ctx.databases.primary
    await sql`create table source (id int primary key)`
    await sql`create table target (id int)`
    await sql`insert into source select generate_series(1, 47)`
    const { jobId } = await enqueueBatchJob(ctx, copyBatch, {}, 'test')
    const batches = new Map([[copyBatch.name, copyBatch]])
    const stop = new AbortController()
    watchSteps({ steps: new Set(['chunk.committed']), reached: () => stop.abort() })
    expect(await runBatch(ctx, batches, jobId, stop.signal, timing)).toBe('stopped')
    watchSteps(undefined)
    expect(await sql`select max(id) from target`).toEqual([{ max: 10 }])
    expect(await runBatch(ctx, batches, jobId, signal, timing)).toBe('completed')
    expect(await sql`select count(*)::int, count(distinct id)::int as ids from target`).toEqual([
      { count: 47, ids: 47 },
    ])
  })

  it('beside another run of the same job commits each chunk once', async () => {
    const urls = await newDatabases()
    const [one, two] = [await openContext(urls), await openContext(urls)]
    const { sql } = one.databases.primary
    await sql`create table source (id int primary key)`
    await sql`create table target (id int)`
    await sql`insert into source select generate_series(1, 300)`
    const { jobId } = await enqueueBatchJob(one, copyBatch, {}, 'test')
    const batches = new Map([[copyBatch.name, copyBatch]])
    const outcomes = await Promise.all([one, two].map((ctx) => runBatch(ctx, batches, jobId, signal, timing)))
    expect(outcomes).toEqual(['completed', 'completed'])
    expect(await sql`select count(*)::int, count(distinct id)::int as ids from target`).toEqual([
      { count: 300, ids: 300 },
    ])
    expect(await preparedGids(one)).toEqual([])
  })

  it('beside another run is not failed for the other’s rows, which its own work finds there already', async () => {
    const urls = await newDatabases()
    const [one, two] = [await openContext(urls), await openContext(urls)]
    const { sql } = one.databases.primary
    await sql`create table source (id int primary key)`
    await sql`create table target (id int primary key)`
    await sql`insert into source select generate_series(1, 300)`
    const { jobId } = await enqueueBatchJob(one, copyBatch, {}, 'test')
    const batches = new Map([[copyBatch.name, copyBatch]])
    const once = { ...timing, maxFailures: 1 }
    const outcomes = await Promise.all([one, two].map((ctx) => runBatch(ctx, batches, jobId, signal, once)))
    expect(outcomes).toEqual(['completed', 'completed'])
    expect(await sql`select count(*)::int from target`).toEqual([{ count: 300 }])
  })

  it('whose work leaves its transaction idle beyond the limit fails, and does not go on for ever', async () => {
    const ctx = await openContext(await newDatabases(), { idleTimeoutMs: 2_000 })
    await ctx.databases.primary.sql`create table source as select 1 as id`
    await ctx.databases.primary.sql`alter table source add primary key (id)`
    const idle = defineBatch({
      name: 'idle',
      source: keyset({ table: 'source', key: ['id'] }),
      // Until the connection is gone, which the run notices by itself.
      process: () => new Promise(() => undefined),
    })
    const { jobId, outcome } = await run(ctx, idle)
    expect(outcome).toBe('failed')
    expect((await statusOf(ctx, jobId))?.error).toContain('must not leave its transaction idle')
  })

  it('whose connections are cut again and again still commits each row once', async () => {
    const urls = await newDatabases()
    const ctx = await openContext(urls)
    const killer = await openContext(urls)
    const { sql } = killer.databases.primary
    await sql`create table source (id int primary key)`
    await sql`create table target (id int)`
    await sql`insert into source select generate_series(1, 200)`
    const { jobId } = await enqueueBatchJob(killer, copyBatch, {}, 'test')
    let steps = 0
    watchSteps({
      steps: new Set(['chunk.staging', 'chunk.prepared', 'chunk.committed']),
      async reached() {
        if (++steps % 4 !== 0) return
        // Every other connection to this database, wherever it is.
        await sql`select pg_terminate_backend(pid, 5000) from pg_stat_activity
          where datname = current_database() and pid <> pg_backend_pid()`
      },
    })
    const outcome = await runBatch(ctx, new Map([[copyBatch.name, copyBatch]]), jobId, signal, timing)
    watchSteps(undefined)
    expect(outcome).toBe('completed')
    expect(await sql`select count(*)::int, count(distinct id)::int as ids from target`).toEqual([
      { count: 200, ids: 200 },
    ])
    expect(await preparedGids(killer)).toEqual([])
  })
})

describe('parameters', () => {
  const typed = defineBatch({
    name: 'typed',
    params: z.object({ limit: z.number().int() }),
    source: keyset({ table: 'source', key: ['id'] }),
    async process(_rows, { params }) {
      expect(params.limit).toBe(3)
    },
  })

  it('are validated before anything is enqueued', async () => {
    const ctx = await openContext(await newDatabases())
    await expect(enqueueBatchJob(ctx, typed, { limit: 'many' }, 'test')).rejects.toThrow(InvalidPayloadError)
    await expect(enqueueBatchJob(ctx, typed, { limit: 1n }, 'test')).rejects.toThrow('bigint')
    expect(await ctx.databases.primary.sql`select 1 from holdfast.batch_jobs`).toEqual([])
    await ctx.databases.primary.sql`create table source as select 1 as id`
    await ctx.databases.primary.sql`alter table source add primary key (id)`
    expect((await run(ctx, typed, { limit: 3 })).outcome).toBe('completed')
  })

  it('and definitions are checked with everything that is wrong', () => {
    const bad = { name: 'No Good', chunkSize: 0, source: {}, process: 7 } as unknown as BatchDefinition
    expect(() => defineBatch(bad)).toThrow(InvalidConfigError)
    expect(() => defineBatch(bad)).toThrow(/name has.*chunkSize.*source.*process/s)
  })
})
