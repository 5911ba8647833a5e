import { describe, expect, it } from 'vitest'
import { deferred } from '../../src/db/deferred.ts'
import type { Json } from '../../src/db/json.ts'
import { type BatchDefinition, defineBatch } from '../../src/jobs/batch-definition.ts'
import { enqueueBatchJob } from '../../src/jobs/enqueue-batch.ts'
import { keyset } from '../../src/jobs/keyset.ts'
import { ReadAhead } from '../../src/jobs/read-ahead.ts'
import { runBatch } from '../../src/jobs/run-batch.ts'
import type { Source } from '../../src/jobs/source.ts'
import { verifyBatch } from '../../src/jobs/verify-batch.ts'
import { newDatabases, openContext } from '../support/database.ts'

type Row = { id: number }

const signal = new AbortController().signal
const source = keyset<Row>({ table: 'source', key: ['id'] })

async function arrange(changes: Partial<BatchDefinition<unknown, Row>> = {}) {
  const ctx = await openContext(await newDatabases())
  const { sql } = ctx.databases.primary
  await sql`create table source (id int primary key)`
  await sql`create table target (id int)`
  await sql`insert into source select generate_series(1, 47)`
  const batch = defineBatch({
    name: 'copy',
    source,
    chunkSize: 10,
    readAhead: true,
    async process(rows, { tx }) {
      await tx`insert into target ${tx(rows, 'id')}`
    },
    ...changes,
  }) as BatchDefinition
  const { jobId } = await enqueueBatchJob(ctx, batch, {}, 'test')
  const definitions = new Map([[batch.name, batch]])
  return {
    ctx,
    sql,
    run: () => runBatch(ctx, definitions, jobId, signal, { backoffMs: 1, maxBackoffMs: 5 }),
    verify: () => verifyBatch(ctx, definitions, jobId),
  }
}

/** Tells where it was read. */
function watched(read: (cursor: Json) => void): Source<Row> {
  return {
    ...source,
    read: (tx, cursor, limit, until) => {
      read(cursor)
      return source.read(tx, cursor, limit, until)
    },
  }
}

describe('a batch that reads ahead', () => {
  it('reads the next chunk while one is processed, and each row once', async () => {
    const reads: Json[] = []
    const secondRead = deferred<void>()
    const { sql, run, verify } = await arrange({
      source: watched((cursor) => {
        reads.push(cursor)
        if (reads.length === 2) secondRead.resolve()
      }),
      async process(rows, { tx, chunk }) {
        if (chunk === 1n) await secondRead.promise
        await tx`insert into target ${tx(rows, 'id')}`
      },
    })
    expect(await run()).toBe('completed')
    expect(reads).toEqual([null, ['10'], ['20'], ['30'], ['40']])
    expect(await sql`select count(*)::int, count(distinct id)::int as ids from target`).toEqual([
      { count: 47, ids: 47 },
    ])
    expect(await verify()).toMatchObject({ proved: true })
  })

  it('reads again what was read for a chunk that failed', async () => {
    let failing = true
    const { sql, run } = await arrange({
      async process(rows, { tx, chunk }) {
        if (chunk === 3n && failing) {
          failing = false
          await tx`insert into source values (25), (1000) on conflict do nothing`
          throw new Error('once')
        }
        await tx`insert into target ${tx(rows, 'id')}`
      },
    })
    expect(await run()).toBe('completed')
    expect(await sql`select count(*)::int, count(distinct id)::int as ids from target`).toEqual([
      { count: 47, ids: 47 },
    ])
  })
})

describe('what was read ahead', () => {
  async function reading(from: Source<Row> = source) {
    const { ctx } = await arrange()
    return new ReadAhead({ ctx, source: from })
  }

  it('is given once, for the same position, size and end alone', async () => {
    const ahead = await reading()
    ahead.start(['10'], 5, ['40'])
    expect((await ahead.take(['10'], 5, ['40']))?.rows).toHaveLength(5)
    expect(await ahead.take(['10'], 5, ['40'])).toBeUndefined()
    const others: [cursor: Json, size: number, until: Json][] = [
      [['11'], 5, ['40']],
      [['10'], 6, ['40']],
      [['10'], 5, null],
    ]
    for (const [cursor, size, until] of others) {
      ahead.start(['10'], 5, ['40'])
      expect(await ahead.take(cursor, size, until)).toBeUndefined()
    }
  })

  it('is nothing where the read failed: the chunk reads for itself', async () => {
    const ahead = await reading({ read: () => Promise.reject(new Error('the source is away')) })
    ahead.start(null, 5, null)
    expect(await ahead.take(null, 5, null)).toBeUndefined()
  })
})
