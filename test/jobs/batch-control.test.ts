import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { z } from 'zod'
import { type BatchStatus, findBatchJob, listBatchJobs } from '../../src/db/batch-jobs.ts'
import { BatchNotCompletedError, UnknownJobError, WrongBatchStateError } from '../../src/db/errors.ts'
import { watchSteps } from '../../src/db/steps.ts'
import { cancelBatch, pauseBatch, resumeBatch } from '../../src/jobs/batch-control.ts'
import { type BatchDefinition, defineBatch } from '../../src/jobs/batch-definition.ts'
import type { JobContext } from '../../src/jobs/context.ts'
import { enqueueBatchJob, ensureBatchCompleted } from '../../src/jobs/enqueue-batch.ts'
import { keyset } from '../../src/jobs/keyset.ts'
import { runBatch } from '../../src/jobs/run-batch.ts'
import { csv } from '../../src/jobs/sources/csv.ts'
import { newDatabases, openContext } from '../support/database.ts'

const signal = new AbortController().signal
const timing = { maxFailures: 2, backoffMs: 1, maxBackoffMs: 5 }

const definition = {
  name: 'copy',
  source: keyset<{ id: number }>({ table: 'source', key: ['id'] }),
  chunkSize: 10,
  async process(rows, { tx }) {
    await tx`insert into target ${tx(rows as { id: number }[], 'id')}`
  },
} satisfies BatchDefinition

async function arrange(batch: BatchDefinition = definition, rows = 47) {
  const ctx = await openContext(await newDatabases())
  const { sql } = ctx.databases.primary
  await sql`create table source (id int primary key)`
  await sql`create table target (id int)`
  await sql`insert into source select generate_series(1, ${rows}::int)`
  const { jobId } = await enqueueBatchJob(ctx, batch, {}, 'test')
  return { ctx, jobId, run: () => runBatch(ctx, new Map([[batch.name, batch]]), jobId, signal, timing) }
}

async function copied({ databases: { primary } }: JobContext) {
  const [row] = await primary.sql`select count(*)::int as rows, count(distinct id)::int as ids from target`
  return row
}

/** Calls back once, when the first chunk of a run has committed. */
function afterFirstChunk(act: () => Promise<unknown>): void {
  watchSteps({
    steps: new Set(['chunk.committed']),
    async reached() {
      watchSteps(undefined)
      await act()
    },
  })
}

describe('a batch job', () => {
  it('that is paused lets go between two chunks, and goes on where it was when it is resumed', async () => {
    const { ctx, jobId, run } = await arrange()
    afterFirstChunk(async () => expect(await pauseBatch(ctx, jobId)).toBe('pausing'))
    expect(await run()).toBe('stopped')
    const { sql } = ctx.databases.primary
    expect((await findBatchJob(sql, jobId))?.status).toBe('paused')
    const then = await copied(ctx)
    expect(then?.rows).toBeGreaterThanOrEqual(10)
    expect(then?.rows).toBeLessThan(47)
    // Nobody takes it up.
    expect(await run()).toBe('stopped')
    expect(await copied(ctx)).toEqual(then)
    expect(await resumeBatch(ctx, jobId)).toBe('queued')
    expect(await run()).toBe('completed')
    expect(await copied(ctx)).toEqual({ rows: 47, ids: 47 })
  })

  it('is paused at once while no run has it, or by force', async () => {
    const { ctx, jobId, run } = await arrange()
    expect(await pauseBatch(ctx, jobId)).toBe('paused')
    expect(await resumeBatch(ctx, jobId)).toBe('queued')
    afterFirstChunk(async () => expect(await pauseBatch(ctx, jobId, { force: true })).toBe('paused'))
    expect(await run()).toBe('stopped')
    expect((await findBatchJob(ctx.databases.primary.sql, jobId))?.status).toBe('paused')
  })

  it('that was paused by force and resumed while its old run still hangs is run by both, each row once', async () => {
    const { ctx, jobId, run } = await arrange()
    let second: Promise<string> | undefined
    afterFirstChunk(async () => {
      await pauseBatch(ctx, jobId, { force: true })
      await resumeBatch(ctx, jobId)
      second = run()
    })
    const outcomes = [await run(), await second]
    expect(outcomes).toContain('completed')
    expect(await copied(ctx)).toEqual({ rows: 47, ids: 47 })
  })

  it('that is cancelled keeps what it did, and nothing brings it back', async () => {
    const { ctx, jobId, run } = await arrange()
    afterFirstChunk(async () => expect(await cancelBatch(ctx, jobId)).toBe('cancelling'))
    expect(await run()).toBe('stopped')
    const job = await findBatchJob(ctx.databases.primary.sql, jobId)
    expect(job?.status).toBe('cancelled')
    expect(job?.finishedAt).toBeInstanceOf(Date)
    await expect(resumeBatch(ctx, jobId)).rejects.toThrow(WrongBatchStateError)
    await expect(pauseBatch(ctx, jobId)).rejects.toThrow('is cancelled and cannot be paused')
    expect(await cancelBatch(ctx, jobId)).toBe('cancelled')
    await expect(cancelBatch(ctx, 'nobody')).rejects.toThrow(UnknownJobError)
    expect(await run()).toBe('stopped')
  })

  it('lets go after its longest run, and another run goes on', async () => {
    const { ctx, jobId, run } = await arrange({ ...definition, maxRunMs: 0.001 })
    // Each run looks at its watch after its preparations; it may do nothing, but it ends.
    expect(await run()).toBe('stopped')
    expect((await findBatchJob(ctx.databases.primary.sql, jobId))?.status).toBe('running')
    expect(
      await runBatch(ctx, new Map([['copy', definition as BatchDefinition]]), jobId, signal, timing),
    ).toBe('completed')
    expect(await copied(ctx)).toEqual({ rows: 47, ids: 47 })
  })

  it('holds for the sake of the database, says why, and goes on', async () => {
    let reason: string | undefined = 'the night run is on'
    const throttled: BatchDefinition = { ...definition, throttle: { hook: async () => reason, everyMs: 1 } }
    const { ctx, jobId, run } = await arrange(throttled)
    const { sql } = ctx.databases.primary
    const outcome = run()
    await expect.poll(async () => (await findBatchJob(sql, jobId))?.hold).toContain('the night run is on')
    expect(await copied(ctx)).toEqual({ rows: 0, ids: 0 })
    reason = undefined
    expect(await outcome).toBe('completed')
    expect((await findBatchJob(sql, jobId))?.hold).toBeNull()
    expect(await copied(ctx)).toEqual({ rows: 47, ids: 47 })
  })

  it('can be paused while it holds', async () => {
    const throttled: BatchDefinition = { ...definition, throttle: { hook: async () => 'never', everyMs: 1 } }
    const { ctx, jobId, run } = await arrange(throttled)
    const outcome = run()
    await expect
      .poll(async () => (await findBatchJob(ctx.databases.primary.sql, jobId))?.hold)
      .toContain('never')
    await pauseBatch(ctx, jobId)
    expect(await outcome).toBe('stopped')
    expect(await findBatchJob(ctx.databases.primary.sql, jobId)).toMatchObject({
      status: 'paused',
      hold: null,
    })
  })

  it('is paused by its run also when that is asked for while the run looks', async () => {
    const throttled: BatchDefinition = { ...definition, throttle: { hook: async () => 'never', everyMs: 1 } }
    const { ctx, jobId, run } = await arrange(throttled)
    const { primary } = ctx.databases
    const { sql } = primary
    let paused: Promise<BatchStatus> | undefined
    Object.assign(primary, {
      sql: new Proxy(sql, {
        apply(target, self, args: [TemplateStringsArray]) {
          const query = () => Reflect.apply(target, self, args) as unknown
          // The run has found nothing to do, and is about to look how the job stands.
          if (paused || !args[0].join('').includes('select status from holdfast.batch_jobs')) return query()
          paused = Promise.resolve().then(() => pauseBatch(ctx, jobId))
          return paused.then(query)
        },
      }),
    })
    expect(await run()).toBe('stopped')
    expect(await paused).toBe('pausing')
    expect(await findBatchJob(sql, jobId)).toMatchObject({ status: 'paused', hold: null })
  })

  it('takes more rows at once while chunks are faster than they should be, and fewer when slower', async () => {
    const sizes: number[] = []
    const adaptive: BatchDefinition = {
      ...definition,
      chunkSize: { min: 2, max: 64, targetMs: 600_000 },
      // A chunk that is read ahead has the size that was right when the one before it began.
      readAhead: false,
      async process(rows) {
        sizes.push(rows.length)
      },
    }
    const { ctx, run } = await arrange(adaptive, 200)
    expect(await run()).toBe('completed')
    expect(sizes).toEqual([2, 4, 8, 16, 32, 64, 64, 10])
    sizes.length = 0
    const shrinking: BatchDefinition = { ...adaptive, chunkSize: { min: 2, max: 64, targetMs: 0.001 } }
    const { jobId } = await enqueueBatchJob(ctx, shrinking, {}, 'test')
    await runBatch(ctx, new Map([['copy', shrinking]]), jobId, signal, timing)
    expect(new Set(sizes)).toEqual(new Set([2]))
  })

  it('reads a file, and is resumed where it was', async () => {
    const dir = await mkdtemp(join(tmpdir(), 'holdfast-batch-'))
    const path = join(dir, 'rows.csv')
    await writeFile(path, `id\n${Array.from({ length: 47 }, (_, i) => i + 1).join('\n')}\n`)
    const fromFile: BatchDefinition = { ...definition, source: csv({ path }) }
    const { ctx, jobId, run } = await arrange(fromFile, 0)
    afterFirstChunk(() => pauseBatch(ctx, jobId))
    expect(await run()).toBe('stopped')
    await resumeBatch(ctx, jobId)
    expect(await run()).toBe('completed')
    expect(await copied(ctx)).toEqual({ rows: 47, ids: 47 })
    await rm(dir, { recursive: true })
  })

  it('knows how many rows there were when it began', async () => {
    const { ctx, jobId, run } = await arrange()
    await run()
    expect(await findBatchJob(ctx.databases.primary.sql, jobId)).toMatchObject({
      rowsExpected: 47n,
      rowsExact: true,
    })
  })
})

describe('hooks', () => {
  it('commit exactly once, however many runs there are', async () => {
    const batch: BatchDefinition = {
      ...definition,
      async prepareRun({ tx }) {
        await tx`insert into hooks values ('prepared')`
      },
      async completed({ tx, publish, jobId }) {
        await tx`insert into hooks values ('completed')`
        await publish({ type: 'batch.completed', subject: jobId, data: {} })
      },
    }
    const { ctx, jobId, run } = await arrange(batch)
    const { sql } = ctx.databases.primary
    await sql`create table hooks (what text)`
    await Promise.all([run(), run()])
    // As after a crash between the hook and the last step of the job.
    await sql`update holdfast.batch_jobs set status = 'running' where id = ${jobId}`
    expect(await run()).toBe('completed')
    expect(await sql`select what from hooks order by what`).toEqual([
      { what: 'completed' },
      { what: 'prepared' },
    ])
    expect((await sql`select 1 from holdfast.outbox where type = 'batch.completed'`).length).toBe(1)
    expect(await copied(ctx)).toEqual({ rows: 47, ids: 47 })
  })

  it('that fail fail the job, which has done its rows and can be resumed', async () => {
    let broken = true
    const batch: BatchDefinition = {
      ...definition,
      async completed() {
        if (broken) throw new Error('the report cannot be written')
      },
    }
    const { ctx, jobId, run } = await arrange(batch)
    expect(await run()).toBe('failed')
    expect((await findBatchJob(ctx.databases.primary.sql, jobId))?.error).toContain('the report')
    broken = false
    await resumeBatch(ctx, jobId)
    expect(await run()).toBe('completed')
    expect(await copied(ctx)).toEqual({ rows: 47, ids: 47 })
  })
})

describe('enqueueing', () => {
  const yearly = defineBatch({
    ...definition,
    name: 'yearly',
    unique: 'params',
    params: z.object({ year: z.number(), region: z.string().optional() }),
  }) as BatchDefinition

  it('of a batch that is unique by its parameters returns the open job with the same ones', async () => {
    const { ctx } = await arrange()
    const enqueue = (params: object) => enqueueBatchJob(ctx, yearly, params, 'test')
    const first = await enqueue({ year: 2026, region: 'north' })
    expect(first.existed).toBe(false)
    expect(await enqueue({ region: 'north', year: 2026 })).toEqual({ jobId: first.jobId, existed: true })
    expect((await enqueue({ year: 2026 })).existed).toBe(false)
    const many = await Promise.all(Array.from({ length: 8 }, () => enqueue({ year: 2025 })))
    expect(new Set(many.map(({ jobId }) => jobId)).size).toBe(1)
    expect(many.filter(({ existed }) => !existed)).toHaveLength(1)
    await cancelBatch(ctx, first.jobId)
    expect((await enqueue({ year: 2026, region: 'north' })).existed).toBe(false)
    expect(await listBatchJobs(ctx.databases.primary.sql, { batch: 'yearly' })).toHaveLength(4)
  })

  it('can be required to have been completed', async () => {
    const { ctx, jobId, run } = await arrange()
    await expect(ensureBatchCompleted(ctx, yearly, { year: 2026 })).rejects.toThrow('was ever enqueued')
    await expect(ensureBatchCompleted(ctx, definition, {})).rejects.toThrow(BatchNotCompletedError)
    await expect(ensureBatchCompleted(ctx, definition, {})).rejects.toThrow(`${jobId} is queued`)
    await run()
    expect((await ensureBatchCompleted(ctx, definition, {})).id).toBe(jobId)
    // A later one that has not ended does not matter.
    await enqueueBatchJob(ctx, definition, {}, 'test')
    expect((await ensureBatchCompleted(ctx, definition, {})).id).toBe(jobId)
  })
})
