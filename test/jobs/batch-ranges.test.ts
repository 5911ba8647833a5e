import { describe, expect, it } from 'vitest'
import { findBatchJob } from '../../src/db/batch-jobs.ts'
import { readRanges, recordRanges, splitRange } from '../../src/db/batch-ranges.ts'
import { listBatchRuns } from '../../src/db/batch-runs.ts'
import { deferred } from '../../src/db/deferred.ts'
import { FencedError, InvalidConfigError } from '../../src/db/errors.ts'
import { newAttempt } from '../../src/db/transaction-name.ts'
import { pauseBatch, resumeBatch } from '../../src/jobs/batch-control.ts'
import { type BatchDefinition, defineBatch } from '../../src/jobs/batch-definition.ts'
import { enqueueBatchJob } from '../../src/jobs/enqueue-batch.ts'
import { keyset } from '../../src/jobs/keyset.ts'
import { type RunBatchOptions, runBatch } from '../../src/jobs/run-batch.ts'
import { verifyBatch } from '../../src/jobs/verify-batch.ts'
import { unevenly } from '../support/batch-scenarios.ts'
import { newDatabases, openContext } from '../support/database.ts'

type Row = { id: number }

const signal = new AbortController().signal
const timing = { maxFailures: 2, backoffMs: 1, maxBackoffMs: 20 }
const source = keyset<Row>({ table: 'source', key: ['id'] })

const definition = defineBatch({
  name: 'copy',
  source: unevenly(source, [25, 50, 75]),
  chunkSize: 10,
  parallel: 4,
  async process(rows, { tx }) {
    await tx`insert into target ${tx(rows, 'id')}`
  },
})

async function arrange(changes: Partial<typeof definition> = {}, rows = 100) {
  const batch = { ...definition, ...changes } as unknown as BatchDefinition
  const urls = await newDatabases()
  const ctx = await openContext(urls)
  const { sql } = ctx.databases.primary
  await sql`create table source (id int primary key)`
  await sql`create table target (id int)`
  await sql`insert into source select generate_series(1, ${rows}::int)`
  const { jobId } = await enqueueBatchJob(ctx, batch, {}, 'test')
  const definitions = new Map([[batch.name, batch]])
  const ids = async () => (await sql<Row[]>`select id from target order by id`).map(({ id }) => id)
  return {
    urls,
    ctx,
    sql,
    jobId,
    ids,
    definitions,
    run: (options: RunBatchOptions = {}, as = ctx) =>
      runBatch(as, definitions, jobId, signal, { ...timing, ...options }),
    verify: () => verifyBatch(ctx, definitions, jobId),
  }
}

const upTo = (n: number) => Array.from({ length: n }, (_, i) => i + 1)

describe('a batch with parallel ranges', () => {
  it('processes each row once, under names that say the range, and ends once', async () => {
    const ended: string[] = []
    const { sql, jobId, run, ids, verify } = await arrange({
      async completed({ jobId: id }) {
        ended.push(id)
      },
    })
    expect(await run()).toBe('completed')
    expect(await ids()).toEqual(upTo(100))
    expect(ended).toEqual([jobId])
    expect(await verify()).toMatchObject({ proved: true, covered: true })
    const names = await sql<{ name: string }[]>`
      select forward_name as name from holdfast.transaction_markers where forward_name like ${`${jobId}%progress%`}`
    expect(new Set(names.map(({ name }) => name.slice(jobId.length).replace(/_\d+$/, '')))).toEqual(
      new Set(['_r0_progress', '_r1_progress', '_r2_progress', '_r3_progress']),
    )
  })

  it('works on its ranges at once', async () => {
    const inside = new Set<number>()
    const all = deferred<void>()
    const { run, ids } = await arrange({
      async process(rows, { tx, range }) {
        inside.add(range)
        if (inside.size === 4) all.resolve()
        await all.promise
        await tx`insert into target ${tx(rows, 'id')}`
      },
    })
    expect(await run()).toBe('completed')
    expect(await ids()).toEqual(upTo(100))
  })

  it('cuts what is left of the largest range when another one runs dry', async () => {
    const { ctx, jobId, run, ids, verify } = await arrange(
      {
        source: unevenly(source, [1, 2, 3]),
        async process(rows, { tx, range, chunk }) {
          // Not before the others have nothing left.
          const dry = () => ctx.databases.primary.sql`select from holdfast.batch_positions where last`
          if (range === 3 && chunk === 1n) await expect.poll(async () => (await dry()).length).toBe(3)
          await tx`insert into target ${tx(rows, 'id')}`
        },
      },
      400,
    )
    expect(await run()).toBe('completed')
    expect(await ids()).toEqual(upTo(400))
    const ranges = await readRanges(ctx.databases.primary.sql, jobId)
    expect(ranges.length).toBeGreaterThan(4)
    expect(await verify()).toMatchObject({ proved: true, ranges: ranges.length })
  })

  it('goes on with the ranges that are left, also when they are more than it works on at once', async () => {
    const { ctx, jobId, run, ids } = await arrange({
      parallel: 2,
      source: unevenly(source, [10, 20, 30, 40, 50, 60]),
    })
    await recordRanges(
      ctx.databases.primary,
      jobId,
      [10, 20, 30, 40, 50, 60].map((id) => [String(id)]),
    )
    expect(await run()).toBe('completed')
    expect(await ids()).toEqual(upTo(100))
    expect(await readRanges(ctx.databases.primary.sql, jobId)).toHaveLength(7)
  })

  it('fails as a whole by a row of one range, and goes on where each stood when it is resumed', async () => {
    let bad = true
    const { ctx, jobId, run, ids, verify } = await arrange({
      async process(rows, { tx }) {
        if (bad && rows.some(({ id }) => id === 61)) throw new Error('row 61')
        await tx`insert into target ${tx(rows, 'id')}`
      },
    })
    expect(await run()).toBe('failed')
    expect(await findBatchJob(ctx.databases.primary.sql, jobId)).toMatchObject({
      status: 'failed',
      error: expect.stringContaining('row 61'),
    })
    expect(await ids()).not.toContain(61)
    bad = false
    await resumeBatch(ctx, jobId)
    expect(await run()).toBe('completed')
    expect(await ids()).toEqual(upTo(100))
    expect(await verify()).toMatchObject({ proved: true })
  })

  it('sets aside no more rows than its limit, wherever they are', async () => {
    const { run, sql } = await arrange({
      skipLimit: 2,
      async process(rows) {
        if (rows.some(({ id }) => id % 25 === 0)) throw new Error('a quarter')
      },
    })
    expect(await run()).toBe('failed')
    expect(await sql`select from holdfast.batch_failures`).toHaveLength(2)
  })

  it('lets go everywhere when it is paused', async () => {
    let paused = false
    const { ctx, jobId, run, ids } = await arrange({
      async process(rows, { tx, chunk }) {
        if (chunk === 2n && !paused) {
          paused = true
          await pauseBatch(ctx, jobId)
        }
        await tx`insert into target ${tx(rows, 'id')}`
      },
    })
    expect(await run()).toBe('stopped')
    expect(await ids()).not.toHaveLength(100)
    await resumeBatch(ctx, jobId)
    expect(await run()).toBe('completed')
    expect(await ids()).toEqual(upTo(100))
  })

  it('runs twice at once, by force, and commits each chunk once', async () => {
    const { urls, run, ids, verify } = await arrange({ source: unevenly(source, [1, 2, 3]) }, 300)
    const other = await openContext(urls)
    const outcomes = await Promise.all([run({ maxFailures: 100 }), run({ maxFailures: 100 }, other)])
    expect(outcomes).toContain('completed')
    expect(await ids()).toEqual(upTo(300))
    expect(await verify()).toMatchObject({ proved: true })
  })

  it('tells how far it is', async () => {
    const told: { rows: number; expected: number | null }[] = []
    const { run } = await arrange()
    await run({ onProgress: (progress) => void told.push(progress) })
    expect(told.at(-1)).toEqual({ rows: 100, expected: 100 })
    expect(told.map(({ rows }) => rows)).toEqual(told.map(({ rows }) => rows).toSorted((a, b) => a - b))
  })

  it('is refused for a source that cannot be cut', () => {
    const whole = { read: source.read.bind(source) }
    expect(() => defineBatch({ ...definition, source: whole })).toThrow(InvalidConfigError)
  })
})

describe('the ranges of a job', () => {
  it('are those of the first run that made some', async () => {
    const { ctx, jobId } = await arrange()
    const { primary } = ctx.databases
    await Promise.all([
      recordRanges(primary, jobId, [['10'], ['20'], ['30']]),
      recordRanges(primary, jobId, [['15'], ['25'], ['35'], ['45'], ['55']]),
    ])
    const ranges = await readRanges(primary.sql, jobId)
    expect(ranges.map(({ until }) => until).slice(0, -1)).toEqual(ranges.map(({ after }) => after).slice(1))
    expect([ranges[0]?.after, ranges.at(-1)?.until]).toEqual([null, null])
  })

  it('are one where a job has positions from a time without ranges', async () => {
    const { ctx, sql, jobId } = await arrange()
    await sql`
      insert into holdfast.batch_positions (job_id, range, n, cursor, rows, rows_total, last, attempt)
      values (${jobId}, 0, 1, '["10"]', 10, 10, false, ${newAttempt(ctx.lease.id)})`
    await recordRanges(ctx.databases.primary, jobId, [['20']])
    expect(await readRanges(sql, jobId)).toMatchObject([{ range: 0, after: null, until: null }])
  })

  it('are split under the feet of a run that still reads to the old end, and nothing is done twice', async () => {
    const inside = deferred<void>()
    const goOn = deferred<void>()
    let first = true
    const { ctx, sql, jobId, run, ids, verify } = await arrange({
      parallel: 1,
      chunkSize: 100,
      async process(rows, { tx }) {
        if (first) {
          first = false
          inside.resolve()
          await goOn.promise
        }
        await tx`insert into target ${tx(rows, 'id')}`
      },
    })
    const running = run()
    await inside.promise
    const [range] = await readRanges(sql, jobId)
    await splitRange(ctx.databases.primary, jobId, range!, ['40'], newAttempt(ctx.lease.id))
    goOn.resolve()
    expect(await running).toBe('completed')
    expect(await ids()).toEqual(upTo(100))
    expect(await verify()).toMatchObject({ proved: true, ranges: 2 })
  })

  it('are split once under one number', async () => {
    const { ctx, sql, jobId } = await arrange()
    const { primary } = ctx.databases
    await recordRanges(primary, jobId, [])
    const [range] = await readRanges(sql, jobId)
    const split = (boundary: string) =>
      splitRange(primary, jobId, range!, [boundary], newAttempt(ctx.lease.id))
    const ends = await Promise.allSettled([split('40'), split('50')])
    expect(ends.map(({ status }) => status).toSorted()).toEqual(['fulfilled', 'rejected'])
    expect(ends.find((end) => end.status === 'rejected')?.reason).toBeInstanceOf(FencedError)
    expect(await readRanges(sql, jobId)).toHaveLength(2)
  })
})

describe('the history of a job', () => {
  it('has each run with what it did', async () => {
    let paused = false
    const { ctx, jobId, run } = await arrange({
      async process(_rows, { chunk }) {
        if (chunk === 2n && !paused) {
          paused = true
          await pauseBatch(ctx, jobId)
        }
      },
    })
    await run()
    await resumeBatch(ctx, jobId)
    await run()
    const { sql } = ctx.databases.primary
    const runs = (await listBatchRuns(sql, jobId)).toReversed()
    expect(runs.map(({ outcome, endedAt }) => [outcome, endedAt !== null])).toEqual([
      ['stopped', true],
      ['completed', true],
    ])
    expect(runs.reduce((sum, { rows }) => sum + (rows ?? 0n), 0n)).toBe(100n)
  })
})
