import { describe, expect, it } from 'vitest'
import { deferred } from '../../src/db/deferred.ts'
import type { Json } from '../../src/db/json.ts'
import type { Sql, Tx } from '../../src/db/tx.ts'
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

async function arrange(changes: Partial<BatchDefinition<unknown, Row>> = {}, lockTimeoutMs = 5_000) {
  const ctx = await openContext(await newDatabases(), { lockTimeoutMs })
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

/** The source's own, of another `read` that reads the same. */
function versionOf(read: Source<Row>['read']): Pick<Source<Row>, 'version'> {
  return source.version ? { version: { ...source.version, of: read } } : {}
}

/** Tells where it was read, and which chunks were made of that. */
function watched() {
  const reads: Json[] = []
  const secondRead = deferred<void>()
  const read: Source<Row>['read'] = async (tx, cursor, limit, until) => {
    const chunk = await source.read(tx, cursor, limit, until)
    if (reads.push(cursor) === 2) secondRead.resolve()
    return chunk
  }
  const from: Source<Row> = { ...source, read, ...versionOf(read) }
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
    // What was read long before its turn is read again, which a slow machine may see.
    const keys = reads.map((after) => JSON.stringify(after))
    const inOrder = readAhead === undefined ? keys : [...new Set(keys)]
    expect(inOrder).toEqual(['null', '["10"]', '["20"]', '["30"]', '["40"]'])
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

describe('between two chunks', () => {
  /** The first chunk is held until the second was read ahead and `ddl` waits for it, so that this comes right between them. */
  async function between(
    first: (sql: Sql) => Promise<unknown>,
    ddl: string,
    process = copy,
    lockTimeoutMs?: number,
  ) {
    const { from, reads, secondRead } = watched()
    let done: Promise<unknown> | undefined
    const seen: number[] = []
    const arranged = await arrange(
      {
        source: from,
        async process(rows, context) {
          seen.push(rows.length)
          if (context.chunk === 1n) {
            await secondRead
            await first(sql)
            done = sql.unsafe(ddl).then(() => undefined)
            done.catch(() => undefined)
            await expect
              .poll(async () => sql`select 1 from pg_locks where not granted and database is not null`)
              .toHaveLength(1)
          }
          await process(rows, context)
        },
      },
      lockTimeoutMs,
    )
    const { sql } = arranged
    return { ...arranged, reads, seen, done: () => done }
  }

  it('the table is written anew: where a row version is means something else', async () => {
    const { sql, run, verify, done } = await between(
      (all) => all`delete from source where id in (12, 15)`,
      'vacuum full source',
    )
    expect(await run()).toBe('completed')
    await done()
    expect(await sql`select id from target order by id`).toEqual(await sql`select id from source order by id`)
    expect(await verify()).toMatchObject({ proved: true })
  })

  it('a column is added, without a new version of any row', async () => {
    const { sql, run, done } = await between(
      (all) => all`select 1`,
      `alter table source add column status text not null default 'active'`,
      async (rows, { tx }) => {
        for (const { id, ...rest } of rows)
          await tx`insert into target values (${id}, ${(rest as { status?: string }).status ?? null})`
      },
    )
    expect(await run()).toBe('completed')
    await done()
    expect(await sql`select min(id), max(id), note from target group by note order by note`).toEqual([
      { min: 11, max: 47, note: 'active' },
      { min: 1, max: 10, note: null },
    ])
  })

  it('somebody locks the table for longer than the question waits: nothing is charged, and nothing narrowed down', async () => {
    const { run, seen, done } = await between(
      (all) => all`select 1`,
      `do $$ begin lock table source in access exclusive mode; perform pg_sleep(1); end $$`,
      copy,
      100,
    )
    expect(await run()).toBe('completed')
    await done()
    expect(new Set(seen)).toEqual(new Set([10, 7]))
  })
})

describe('a row that fails in a chunk that was read before the size shrank', () => {
  it('is the one that is set aside', async () => {
    const sizes: number[] = []
    const { sql, run } = await arrange({
      chunkSize: { min: 1, max: 2, targetMs: 300 },
      skipLimit: 1,
      async process(rows, context) {
        sizes.push(rows.length)
        // Longer than it should be: what comes next is smaller, and was read already.
        if (rows.some(({ id }) => id === 4)) await context.tx`select pg_sleep(0.8)`
        if (rows.some(({ id }) => id === 6)) await context.tx`select 1 / 0`
        await copy(rows, context)
      },
    })
    expect(await run()).toBe('completed')
    expect(await sql`select row_key from holdfast.batch_failures`).toEqual([{ row_key: ['6'] }])
    expect(await sql`select id from source except select id from target`).toEqual([{ id: 6 }])
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
    const read: Source<Row>['read'] = async (...args) => {
      await versioned.promise
      await sql`insert into source values (0)`
      const chunk = await source.read(...args)
      await sql`delete from source where id = 0`
      return chunk
    }
    const ask: NonNullable<Source<Row>['version']>['ask'] = async (...args) => {
      const asked = await source.version?.ask(...args)
      return (
        asked &&
        ((tx) =>
          asked(tx).then((version) => {
            versioned.resolve()
            return version
          }))
      )
    }
    const ahead = new ReadAhead({ ctx, source: { ...source, read, version: { of: read, ask } } }, false)
    ahead.start(['-1'], 3, null)
    expect((await ahead.take(['-1'], null))?.chunk.rows).toMatchObject([{ id: 1 }, { id: 2 }, { id: 3 }])
  })

  it('is nothing for a source of which another one made a `read` of its own', async () => {
    const ahead = await reading({ ...source, read: (...args) => source.read(...args) })
    ahead.start(null, 5, null)
    expect(await ahead.take(null, null)).toBeUndefined()
  })

  it.each([true, false])(
    'holds up no decision, however slowly many read (promised: %s)',
    async (promised) => {
      const { ctx } = await arrange()
      const gate = deferred<void>()
      let reading = 0
      const allRead = deferred<void>()
      const read: Source<Row>['read'] = async (...args) => {
        if (++reading === 4) allRead.resolve()
        await gate.promise
        return source.read(...args)
      }
      const slow = { ...source, read, version: { of: read, ask: source.version!.ask } }
      const start = () => {
        const ahead = new ReadAhead({ ctx, source: slow }, promised)
        ahead.start(null, 5, null)
        return ahead
      }
      // What nobody asks for within a second is dropped, and connections may take that long to open.
      const taken = Array.from({ length: 4 }, start).map((ahead) => ahead.take(null, null))
      await allRead.promise
      // A fifth is not worth a wait; its chunk reads for itself.
      expect(await start().take(null, null)).toBeUndefined()
      const { primary } = ctx.databases
      const decisions = Array.from({ length: 4 }, (_, i) => primary.transaction(async () => i))
      expect(await Promise.all(decisions)).toEqual([0, 1, 2, 3])
      gate.resolve()
      for (const ahead of taken) expect((await ahead)?.chunk.rows).toHaveLength(5)
    },
  )

  it('is at its end when the run is', async () => {
    const read: Source<Row>['read'] = async (tx, cursor, ...rest) => {
      const [chunk] = await Promise.all([
        source.read(tx, cursor, ...rest),
        cursor === null ? undefined : tx`select pg_sleep(1), 'read ahead'`,
      ])
      return chunk
    }
    const { sql, run } = await arrange({
      source: { ...source, read, ...versionOf(read) },
      async process(_rows, { tx }) {
        await tx`select 1 / 0`
      },
    })
    expect(await run()).toBe('failed')
    expect(
      await sql`
        select query from pg_stat_activity
        where datname = current_database() and state = 'active' and pid <> pg_backend_pid() and query like '%read ahead%'`,
    ).toEqual([])
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
