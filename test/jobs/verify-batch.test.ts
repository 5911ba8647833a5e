import { describe, expect, it } from 'vitest'
import type { Json } from '../../src/db/json.ts'
import type { Tx } from '../../src/db/tx.ts'
import { type BatchDefinition, defineBatch } from '../../src/jobs/batch-definition.ts'
import type { JobContext } from '../../src/jobs/context.ts'
import { enqueueBatchJob } from '../../src/jobs/enqueue-batch.ts'
import { keyset } from '../../src/jobs/keyset.ts'
import { runBatch } from '../../src/jobs/run-batch.ts'
import { verifyBatch } from '../../src/jobs/verify-batch.ts'
import { newDatabases, openContext } from '../support/database.ts'

const signal = new AbortController().signal

const source = keyset<{ a: number; b: string }>({ table: 'source', key: ['a', 'b'] })
const batch = defineBatch({
  name: 'touch',
  source,
  chunkSize: 10,
  async process() {},
}) as BatchDefinition
const batches = new Map([[batch.name, batch]])

async function done(): Promise<{ ctx: JobContext; jobId: string }> {
  const ctx = await openContext(await newDatabases())
  const { sql } = ctx.databases.primary
  await sql`create table source (a int not null, b text not null, primary key (a, b))`
  await sql`insert into source select g % 7, 'x"' || g from generate_series(1, 95) g`
  const { jobId } = await enqueueBatchJob(ctx, batch, {}, 'test')
  expect(await runBatch(ctx, batches, jobId, signal)).toBe('completed')
  return { ctx, jobId }
}

describe('verify', () => {
  it('proves that each row was processed exactly once', async () => {
    const { ctx, jobId } = await done()
    expect(await verifyBatch(ctx, batches, jobId)).toEqual({
      jobId,
      status: 'completed',
      proved: true,
      ranges: 1,
      covered: true,
      chunks: 10n,
      rows: { processed: 95n, failed: 0n },
      missing: [],
      source: { rows: 95n },
      changed: [],
      changedChunks: 0,
      beyond: 0n,
    })
  })

  it('tells what was inserted, deleted and re-keyed since, and where', async () => {
    const { ctx, jobId } = await done()
    const { sql } = ctx.databases.primary
    const chunks = await sql<{ n: number; cursor: string[] }[]>`
      select n::int, cursor from holdfast.batch_positions order by n`
    const [first, second, third] = chunks.map(({ cursor }) => cursor)
    await sql`insert into source values (0, 'a')`
    await sql`delete from source where a = ${Number(second![0])} and b = ${second![1]!}`
    // A count alone would not see this one.
    await sql`update source set b = b || '.' where a = ${Number(third![0])} and b <= ${third![1]!}
      and (a, b) > (${Number(second![0])}, ${second![1]!}) and b = (select min(b) from source
        where a = ${Number(third![0])} and (a, b) > (${Number(second![0])}, ${second![1]!}))`
    await sql`insert into source values (100, 'appended')`
    const verification = await verifyBatch(ctx, batches, jobId)
    expect(verification).toMatchObject({ proved: false, missing: [], beyond: 1n, changedChunks: 3 })
    expect(verification.changed).toMatchObject([
      { chunk: 1n, after: null, until: first, read: 10n, now: 11n },
      { chunk: 2n, after: first, until: second, read: 10n, now: 9n },
      { chunk: 3n, after: second, until: third, read: 10n, now: 10n },
    ])
  })

  it('misses a chunk whose record is gone, and a job that is not at its end', async () => {
    const { ctx, jobId } = await done()
    const { sql } = ctx.databases.primary
    await sql`delete from holdfast.batch_positions where n = 4`
    const verification = await verifyBatch(ctx, batches, jobId)
    expect(verification).toMatchObject({ proved: false, missing: [{ range: 0, chunk: 4n }] })
    const { jobId: open } = await enqueueBatchJob(ctx, batch, {}, 'test')
    expect(await verifyBatch(ctx, batches, open)).toMatchObject({
      proved: false,
      status: 'queued',
      chunks: 0n,
    })
  })

  it('says so where the source cannot be compared, or the job is unknown', async () => {
    const { ctx, jobId } = await done()
    const blind = {
      ...batch,
      source: { read: (tx: Tx, cursor: Json, limit: number) => source.read(tx, cursor, limit) },
    }
    await expect(verifyBatch(ctx, new Map([['touch', blind]]), jobId)).rejects.toThrow('cannot be compared')
    await expect(verifyBatch(ctx, batches, 'nobody')).rejects.toThrow('no batch job nobody')
  })
})
