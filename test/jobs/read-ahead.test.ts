import { describe, expect, it } from 'vitest'
import { deferred } from '../../src/db/deferred.ts'
import type { Json } from '../../src/db/json.ts'
import type { Tx } from '../../src/db/tx.ts'
import { type BatchDefinition, defineBatch } from '../../src/jobs/batch-definition.ts'
import { enqueueBatchJob } from '../../src/jobs/enqueue-batch.ts'
import { keyset } from '../../src/jobs/keyset.ts'
import { ReadAhead } from '../../src/jobs/read-ahead.ts'
import { runBatch } from '../../src/jobs/run-batch.ts'
import type { Source } from '../../src/jobs/source.ts'
import { verifyBatch } from '../../src/jobs/verify-batch.ts'
import { newDatabases, openContext } from '../support/database.ts'

type Row = { id: number; note: string }

const signal = new AbortController().signal
const source = keyset<Row>({ table: 'source', key: ['id'] })

async function arrange(changes: Partial<BatchDefinition<unknown, Row>> = {}) {
  const ctx = await openContext(await newDatabases())
  const { sql } = ctx.databases.primary
  await sql`create table source (id int primary key, note text not null default 'old')`
  await sql`create table target (id int, note text)`
  await sql`insert into source select generate_series(1, 47)`
  const batch = defineBatch({
    name: 'copy',
    source,
    chunkSize: 10,
    process: copy,
    ...changes,
  }) as BatchDefinition
  const { jobId } = await enqueueBatchJob(ctx, batch, {}, 'test')
  const definitions = new Map([[batch.name, batch]])
  return {
    ctx,
    sql,
    run: () => runBatch(ctx, definitions, jobId, signal, { maxFailures: 1, backoffMs: 1, maxBackoffMs: 5 }),
    verify: () => verifyBatch(ctx, definitions, jobId),
  }
}

type Context = Parameters<BatchDefinition<unknown, Row>['process']>[1]

async function copy(rows: readonly Row[], { tx }: Pick<Context, 'tx'>): Promise<void> {
  await tx`insert into target ${tx(rows, 'id', 'note')}`
}

/** Tells where it was read, and which chunks were made of that. */
function watched() {
  const reads: Json[] = []
  const secondRead = deferred<void>()
  const from: Source<Row> = {
    ...source,
    read: async (tx, cursor, limit, until) => {
      const chunk = await source.read(tx, cursor, limit, until)
      if (reads.push(cursor) === 2) secondRead.resolve()
      return chunk
    },
  }
  return { from, reads, secondRead: secondRead.promise }
}

const everyRowOnce = [{ count: 47, ids: 47 }]

describe.each([
  ['as long as nothing changes', undefined],
  ['as it was told to', true],
])('a batch that reads ahead %s', (_when, readAhead) => {
  const ahead = readAhead === undefined ? {} : { readAhead }

  it('reads the next chunk while one is processed, and each row once', async () => {
    const { from, reads, secondRead } = watched()
    const { sql, run, verify } = await arrange({
      ...ahead,
      source: from,
      async process(rows, context) {
        if (context.chunk === 1n) await secondRead
        // What a chunk does to its own rows is not what was changed before.
        await context.tx`update source set note = 'seen' where id = any (${rows.map(({ id }) => id)})`
        await copy(rows, context)
      },
    })
    expect(await run()).toBe('completed')
    expect(reads).toEqual([null, ['10'], ['20'], ['30'], ['40']])
    expect(await sql`select count(*)::int, count(distinct id)::int as ids from target`).toEqual(everyRowOnce)
    expect(await verify()).toMatchObject({ proved: true })
  })

  it('reads again what was read for a chunk that failed', async () => {
    const failed = new Set<bigint>()
    const { sql, run } = await arrange({
      ...ahead,
      skipLimit: 1,
      async process(rows, context) {
        if (rows.some(({ id }) => id === 25) && !failed.has(context.chunk)) {
          failed.add(context.chunk)
          throw new Error('once')
        }
        await copy(rows, context)
      },
    })
    expect(await run()).toBe('completed')
    expect(await sql`select count(*)::int, count(distinct id)::int as ids from target`).toEqual(everyRowOnce)
  })

  it('goes by the sizes that it has read', async () => {
    const { sql, run, verify } = await arrange({ ...ahead, chunkSize: { min: 3, max: 20, targetMs: 10_000 } })
    expect(await run()).toBe('completed')
    expect(await sql`select count(*)::int, count(distinct id)::int as ids from target`).toEqual(everyRowOnce)
    expect(await verify()).toMatchObject({ proved: true })
  })
})

describe('a chunk that was read ahead', () => {
  /** The second chunk was read before the first does `change`, and does it in its own transaction. */
  async function changing(change: (tx: Tx) => Promise<unknown>, process = copy) {
    const { from, reads, secondRead } = watched()
    const arranged = await arrange({
      source: from,
      async process(rows, context) {
        if (context.chunk === 1n) {
          await secondRead
          await change(context.tx)
        }
        await process(rows, context)
      },
    })
    return { ...arranged, reads }
  }

  const changes: [string, (tx: Tx) => Promise<unknown>][] = [
    ['deletes', async (tx) => tx`delete from source where id in (12, 20)`],
    [
      'inserts',
      async (tx) => tx`delete from source where id = 13`.then(() => tx`insert into source values (13)`),
    ],
    ['changes', async (tx) => tx`update source set note = 'new' where id = 15`],
    ['gives another key', async (tx) => tx`update source set id = 100 where id = 15`],
    ['deletes behind its end', async (tx) => tx`delete from source where id > 20`],
  ]

  it.each(changes)('sees what the one before it %s', async (_what, change) => {
    const { sql, run, verify, reads } = await changing(change)
    expect(await run()).toBe('completed')
    expect(await sql`select id, note from target order by id`).toEqual(
      await sql`select id, note from source order by id`,
    )
    expect(await verify()).toMatchObject({ proved: true })
    // Ahead, and again.
    expect(reads.filter((cursor) => JSON.stringify(cursor) === '["10"]')).toHaveLength(2)
  })

  it('has not failed when it failed of what was changed', async () => {
    const { sql, run } = await changing(
      async (tx) => tx`delete from source where id = 12`,
      async (rows, context) => {
        await context.tx`create table if not exists seen (id int references source)`
        await context.tx`insert into seen ${context.tx(rows, 'id')}`
        await copy(rows, context)
      },
    )
    expect(await run()).toBe('completed')
    expect(await sql`select count(*)::int from target`).toEqual([{ count: 46 }])
    // It was not narrowed down either.
    expect(await sql`select rows::int from holdfast.batch_positions order by n`).toEqual(
      [10, 10, 10, 10, 6].map((rows) => ({ rows })),
    )
  })
})

describe('what was read ahead', () => {
  async function reading(from: Source<Row> = source, promised = false) {
    const { ctx } = await arrange()
    return new ReadAhead({ ctx, source: from }, promised)
  }

  it('is given once, for the same position and end alone', async () => {
    const ahead = await reading()
    ahead.start(['10'], 5, ['40'])
    expect((await ahead.take(['10'], ['40']))?.chunk.rows).toHaveLength(5)
    expect(await ahead.take(['10'], ['40'])).toBeUndefined()
    const others: [cursor: Json, until: Json][] = [
      [['11'], ['40']],
      [['10'], null],
    ]
    for (const [cursor, until] of others) {
      ahead.start(['10'], 5, ['40'])
      expect(await ahead.take(cursor, until)).toBeUndefined()
    }
  })

  it('is of one moment: a row that came and went is not in it', async () => {
    const { ctx, sql } = await arrange()
    const versioned = deferred<void>()
    const ahead = new ReadAhead(
      {
        ctx,
        source: {
          ...source,
          async version(...args) {
            const ask = await source.version?.(...args)
            return (
              ask &&
              ((tx) =>
                ask(tx).then((version) => {
                  versioned.resolve()
                  return version
                }))
            )
          },
          async read(...args) {
            await versioned.promise
            await sql`insert into source values (0)`
            const chunk = await source.read(...args)
            await sql`delete from source where id = 0`
            return chunk
          },
        },
      },
      false,
    )
    ahead.start(['-1'], 3, null)
    expect((await ahead.take(['-1'], null))?.chunk.rows).toMatchObject([{ id: 1 }, { id: 2 }, { id: 3 }])
  })

  it('is nothing where the read failed: the chunk reads for itself', async () => {
    const ahead = await reading({ read: () => Promise.reject(new Error('the source is away')) }, true)
    ahead.start(null, 5, null)
    expect(await ahead.take(null, null)).toBeUndefined()
  })

  it('is nothing where the source cannot tell whether it changed, unless that was promised', async () => {
    const blind = keyset<Row>({ query: 'select * from source', key: ['id'] })
    for (const [promised, rows] of [
      [false, undefined],
      [true, 5],
    ] as const) {
      const ahead = await reading(blind, promised)
      ahead.start(null, 5, null)
      expect((await ahead.take(null, null))?.chunk.rows.length).toBe(rows)
    }
  })

  it('is nothing for a while where it turns out to have changed, and longer each time', async () => {
    const ahead = await reading()
    const untilRead = async () => {
      for (let skipped = 0; ; skipped++) {
        ahead.start(null, 5, null)
        if (await ahead.take(null, null)) return skipped
      }
    }
    const skipped: number[] = []
    for (let time = 0; time < 9; time++) {
      ahead.changed()
      skipped.push(await untilRead())
    }
    ahead.held()
    ahead.changed()
    skipped.push(await untilRead())
    expect(skipped).toEqual([1, 2, 4, 8, 16, 32, 64, 64, 64, 1])
  })
})
