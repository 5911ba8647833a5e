import { readFileSync } from 'node:fs'
import { writeFile } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { describe, expect, it } from 'vitest'
import { countFailures, listFailures } from '../../src/db/batch-failures.ts'
import { findBatchJob } from '../../src/db/batch-jobs.ts'
import { readBatchProgress } from '../../src/db/batch-positions.ts'
import { resumeBatch, retryBatchFailures } from '../../src/jobs/batch-control.ts'
import { type BatchDefinition, defineBatch } from '../../src/jobs/batch-definition.ts'
import type { JobContext } from '../../src/jobs/context.ts'
import { enqueueBatchJob } from '../../src/jobs/enqueue-batch.ts'
import { keyset } from '../../src/jobs/keyset.ts'
import { runBatch } from '../../src/jobs/run-batch.ts'
import { csv } from '../../src/jobs/sources/csv.ts'
import { ndjson } from '../../src/jobs/sources/ndjson.ts'
import { verifyBatch } from '../../src/jobs/verify-batch.ts'
import { newDatabases, openContext } from '../support/database.ts'
import { preparedGids } from '../support/prepared-gids.ts'
import { newFile } from './sources/read-file.ts'

const signal = new AbortController().signal
const timing = { maxFailures: 2, backoffMs: 1, maxBackoffMs: 5 }

/** Refused by the code, or by the database: what fails in either way is set aside. */
class BadRowError extends Error {}

function copying(options: Partial<BatchDefinition> & { isBad?: (id: number) => boolean }): BatchDefinition {
  const { isBad = () => false, ...rest } = options
  return defineBatch({
    name: 'copy',
    source: keyset<{ id: number }>({ table: 'source', key: ['id'] }),
    chunkSize: 10,
    skipLimit: 1_000,
    async process(rows, { tx, publish }) {
      const bad = (rows as { id: number }[]).find(({ id }) => isBad(id))
      if (bad) throw new BadRowError(`row ${bad.id} makes no sense`)
      await tx`insert into target ${tx(rows as { id: number }[], 'id')}`
      await publish(rows.map((row) => ({ type: 'row.copied', data: row })))
    },
    ...rest,
  })
}

async function arrange(rows: number): Promise<JobContext> {
  const ctx = await openContext(await newDatabases())
  const { sql } = ctx.databases.primary
  await sql`create table source (id int primary key)`
  await sql`create table target (id int)`
  await sql`insert into source select generate_series(1, ${rows}::int)`
  return ctx
}

async function run(ctx: JobContext, batch: BatchDefinition, jobId?: string, tries = timing.maxFailures) {
  const id = jobId ?? (await enqueueBatchJob(ctx, batch, {}, 'test')).jobId
  const batches = new Map([[batch.name, batch]])
  return {
    jobId: id,
    batches,
    outcome: await runBatch(ctx, batches, id, signal, { ...timing, maxFailures: tries }),
  }
}

async function copied({ databases: { primary } }: JobContext): Promise<number[]> {
  return (await primary.sql<{ id: number }[]>`select id from target order by id`).map(({ id }) => id)
}

async function published({ databases: { primary } }: JobContext): Promise<number[]> {
  const rows = await primary.sql<{ id: number }[]>`
    select (event::json #>> '{data,id}')::int as id from holdfast.outbox order by 1`
  return rows.map(({ id }) => id)
}

const upTo = (n: number) => Array.from({ length: n }, (_, i) => i + 1)
const keysOf = async (ctx: JobContext, jobId: string) =>
  (await listFailures(ctx.databases.primary.sql, jobId, 2_000)).map(({ rowKey }) =>
    Number((rowKey as string[])[0]),
  )

describe('rows that cannot be processed', () => {
  it.each([
    ['the first', 47, (id: number) => id === 1],
    ['the last', 47, (id: number) => id === 47],
    ['a whole chunk', 47, (id: number) => id > 10 && id <= 20],
    ['every one', 13, () => true],
    ['two of one chunk', 47, (id: number) => id === 21 || id === 30],
  ])(
    '%s: all others are processed once, with their events, and they are named',
    async (_which, rows, isBad) => {
      const ctx = await arrange(rows)
      const { jobId, outcome, batches } = await run(ctx, copying({ isBad }))
      expect(outcome).toBe('completed')
      const good = upTo(rows).filter((id) => !isBad(id))
      expect(await copied(ctx)).toEqual(good)
      expect(await published(ctx)).toEqual(good)
      expect(await keysOf(ctx, jobId)).toEqual(upTo(rows).filter(isBad))
      const { sql } = ctx.databases.primary
      expect(await readBatchProgress(sql, jobId)).toMatchObject({
        rows: BigInt(good.length),
        failed: BigInt(rows - good.length),
      })
      expect(await verifyBatch(ctx, batches, jobId)).toMatchObject({
        proved: false,
        changedChunks: 0,
        missing: [],
      })
      expect(await preparedGids(ctx)).toEqual([])
    },
  )

  it('every 1,000th of 100,000', async () => {
    const ctx = await arrange(100_000)
    const { sql } = ctx.databases.primary
    await sql`alter table target add check (id % 1000 <> 0)`
    const batch = copying({
      chunkSize: 1_000,
      async process(rows, { tx }) {
        await tx`insert into target select unnest(${(rows as { id: number }[]).map(({ id }) => id)}::int[])`
      },
    })
    const { jobId, outcome } = await run(ctx, batch)
    expect(outcome).toBe('completed')
    expect(
      await sql`select count(*)::int, count(distinct id)::int as ids, sum(id)::text from target`,
    ).toEqual([
      { count: 99_900, ids: 99_900, sum: String((100_000 * 100_001) / 2 - (1_000 * 100 * 101) / 2) },
    ])
    expect(await keysOf(ctx, jobId)).toEqual(upTo(100).map((k) => k * 1_000))
    const [failure] = await listFailures(sql, jobId, 1)
    expect(failure).toMatchObject({ sqlstate: '23514', state: 'failed', tries: 1 })
  })

  it('fail the job at the limit, with what came before them committed; it can be resumed', async () => {
    const ctx = await arrange(47)
    let mended = false
    const batch = copying({ skipLimit: 1, isBad: (id) => !mended && (id === 5 || id === 25) })
    const { jobId, outcome } = await run(ctx, batch)
    expect(outcome).toBe('failed')
    const { sql } = ctx.databases.primary
    expect((await findBatchJob(sql, jobId))?.error).toMatch(
      /row \["25"\] failed \(1 rows.*skipLimit 1.*makes no sense/,
    )
    expect(await copied(ctx)).toEqual(upTo(24).filter((id) => id !== 5))
    mended = true
    expect(await resumeBatch(ctx, jobId)).toBe('queued')
    expect((await run(ctx, batch, jobId)).outcome).toBe('completed')
    expect(await copied(ctx)).toEqual(upTo(47).filter((id) => id !== 5))
  })

  it('share the digest of their stack where they share the cause', async () => {
    const ctx = await arrange(20)
    const other = () => {
      throw new BadRowError('another cause')
    }
    const batch = copying({
      async process(rows) {
        for (const { id } of rows as { id: number }[]) {
          if (id === 7) other()
          if (id % 5 === 0) throw new BadRowError(`row ${id}`)
        }
      },
    })
    const { jobId } = await run(ctx, batch)
    const digests = (await listFailures(ctx.databases.primary.sql, jobId)).map((f) => f.stackDigest)
    expect(digests).toHaveLength(5)
    expect(new Set(digests).size).toBe(2)
  })

  it('are tried again when asked, each by itself; what is gone says so', async () => {
    const ctx = await arrange(30)
    const { sql } = ctx.databases.primary
    let bad = new Set([3, 14, 25])
    const batch = copying({ isBad: (id) => bad.has(id) })
    const { jobId, batches } = await run(ctx, batch)
    bad = new Set([14])
    await sql`delete from source where id = 25`
    expect(await retryBatchFailures(ctx, jobId)).toBe(3)
    expect((await run(ctx, batch, jobId)).outcome).toBe('completed')
    expect(await copied(ctx)).toEqual(upTo(30).filter((id) => id !== 14 && id !== 25))
    expect((await listFailures(sql, jobId)).map(({ state, tries }) => [state, tries])).toEqual([
      ['resolved', 1],
      ['failed', 2],
      ['gone', 1],
    ])
    bad = new Set()
    expect(await retryBatchFailures(ctx, jobId)).toBe(1)
    await run(ctx, batch, jobId)
    expect(await countFailures(sql, jobId)).toBe(0)
    expect(await copied(ctx)).toEqual(upTo(30).filter((id) => id !== 25))
    // Nothing is asked for: nothing is done again.
    expect(await retryBatchFailures(ctx, jobId)).toBe(0)
    await sql`insert into source values (25)`
    expect(await verifyBatch(ctx, batches, jobId)).toMatchObject({ proved: true })
  })

  it('are those of real data that has grown over years', async () => {
    const file = createRequire(import.meta.url).resolve('vega-datasets/data/movies.json')
    const movies = JSON.parse(readFileSync(file, 'utf8')) as Record<string, unknown>[]
    const ctx = await arrange(0)
    const { sql } = ctx.databases.primary
    await sql`create table raw_movies (id int primary key, movie jsonb not null)`
    await sql`create table movies (id int primary key, title text not null, released date not null, gross bigint not null)`
    await sql`
      insert into raw_movies select n, movie
      from jsonb_array_elements(${JSON.stringify(movies)}::text::jsonb) with ordinality m (movie, n)`
    const isGood = (movie: Record<string, unknown>) =>
      typeof movie.Title === 'string' &&
      typeof movie['Release Date'] === 'string' &&
      !Number.isNaN(Date.parse(movie['Release Date'])) &&
      typeof movie['US Gross'] === 'number' &&
      movie['US Gross'] > 0
    const batch = defineBatch({
      name: 'movies',
      source: keyset<{ id: number; movie: Record<string, unknown> }>({ table: 'raw_movies', key: ['id'] }),
      chunkSize: 250,
      skipLimit: movies.length,
      async process(rows, { tx }) {
        for (const { id, movie } of rows) if (!isGood(movie)) throw new BadRowError(`movie ${id}`)
        await tx`
          insert into movies
          select id, movie->>'Title', (movie->>'Release Date')::date, (movie->>'US Gross')::bigint
          from raw_movies where id = any (${rows.map(({ id }) => id)}::int[])`
      },
    }) as BatchDefinition
    const { jobId, outcome } = await run(ctx, batch, undefined, 1)
    expect(outcome).toBe('completed')
    const good = movies.flatMap((movie, i) => (isGood(movie) ? [i + 1] : []))
    expect(good.length).toBeGreaterThan(2_000)
    expect((await sql<{ id: number }[]>`select id from movies order by id`).map(({ id }) => id)).toEqual(good)
    expect(await countFailures(sql, jobId)).toBe(movies.length - good.length)
  })
})

describe('records of a file that cannot be read', () => {
  const good = (id: number) => ({ id })
  const files = [
    {
      format: 'NDJSON',
      lines: (broken: string) =>
        [1, 2, 3, 4, 5, 6].map((id) => (id === 3 ? broken : JSON.stringify(good(id)))),
      broken: '{"id":3,',
      mended: '{"id":3}',
      source: (path: string) => ndjson<{ id: number }>({ path }),
    },
    {
      format: 'CSV',
      lines: (broken: string) => ['id', '1', '2', broken, '4', '5', '6'],
      broken: '3,0',
      mended: '3  ',
      source: (path: string) => csv<{ id: string }>({ path }),
    },
  ]

  it.each(files)('of $format are set aside, and tried again once they are mended', async (f) => {
    const path = await newFile(`${f.lines(f.broken).join('\n')}\n`)
    const ctx = await arrange(0)
    const batch = copying({
      source: f.source(path),
      skipLimit: 1,
      async process(rows, { tx }) {
        await tx`insert into target ${tx(
          (rows as { id: number | string }[]).map(({ id }) => good(Number(id))),
          'id',
        )}`
      },
    })
    const { jobId, outcome } = await run(ctx, batch)
    expect(outcome).toBe('completed')
    expect(await copied(ctx)).toEqual([1, 2, 4, 5, 6])
    const { sql } = ctx.databases.primary
    expect(await listFailures(sql, jobId)).toMatchObject([
      { rowKey: 3, state: 'failed', tries: 1, error: expect.stringContaining('record 3 ') },
    ])
    expect(await readBatchProgress(sql, jobId)).toMatchObject({ rows: 5n, failed: 1n })
    await writeFile(path, `${f.lines(f.mended).join('\n')}\n`)
    expect(await retryBatchFailures(ctx, jobId)).toBe(1)
    expect((await run(ctx, batch, jobId)).outcome).toBe('completed')
    expect(await copied(ctx)).toEqual(upTo(6))
    expect(await listFailures(sql, jobId)).toMatchObject([{ rowKey: 3, state: 'resolved' }])
  })

  it.each(files)('of $format fail the job that may set none aside, and it is resumed there', async (f) => {
    const path = await newFile(`${f.lines(f.broken).join('\n')}\n`)
    const ctx = await arrange(0)
    const batch = copying({ source: f.source(path), skipLimit: 0 })
    const { jobId, outcome } = await run(ctx, batch)
    expect(outcome).toBe('failed')
    expect((await findBatchJob(ctx.databases.primary.sql, jobId))?.error).toContain('record 3 ')
    await writeFile(path, `${f.lines(f.mended).join('\n')}\n`)
    await resumeBatch(ctx, jobId)
    expect((await run(ctx, batch, jobId)).outcome).toBe('completed')
    expect((await copied(ctx)).map(Number)).toEqual(upTo(6))
  })

  it('cannot be passed over where nobody knows where they end', async () => {
    const path = await newFile('id\n1\n"2\n3\n')
    const ctx = await arrange(0)
    const { jobId, outcome } = await run(ctx, copying({ source: csv({ path }) }))
    expect(outcome).toBe('failed')
    expect((await findBatchJob(ctx.databases.primary.sql, jobId))?.error).toContain('never closed')
    expect(await copied(ctx)).toEqual([1])
  })
})
