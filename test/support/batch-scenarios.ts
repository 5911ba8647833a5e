import assert from 'node:assert/strict'
import type { Json } from '../../src/db/json.ts'
import { type BatchDefinition, defineBatch } from '../../src/jobs/batch-definition.ts'
import type { JobContext } from '../../src/jobs/context.ts'
import { enqueueBatchJob } from '../../src/jobs/enqueue-batch.ts'
import { keyset } from '../../src/jobs/keyset.ts'
import { runBatch } from '../../src/jobs/run-batch.ts'
import type { Source } from '../../src/jobs/source.ts'
import { verifyBatch } from '../../src/jobs/verify-batch.ts'
import type { Scenario } from './scenarios.ts'

const rows = 60

/** A keyset over ids that is cut where the test says first, and then in the middle of what is left. */
export function unevenly(source: Source<{ id: number }>, first: readonly number[]): Source<{ id: number }> {
  return {
    ...source,
    async split(sql, after: Json, until: Json, parts) {
      const [from, to] = [after, until].map((key) => (Array.isArray(key) ? Number(key[0]) : null))
      const ids = await sql<{ id: number }[]>`
        select id from source where id > ${from ?? 0} and id <= ${to ?? 1_000_000_000} order by id`
      const middle = ids[Math.floor(ids.length / 2) - 1]
      const boundaries = parts > 2 ? first : middle && ids.length > 1 ? [middle.id] : []
      return { rows: ids.length, boundaries: boundaries.map((id) => [String(id)]) }
    },
  }
}

const rangesBatch = defineBatch({
  name: 'copy-ranges',
  // Nearly all is in the last range, which has to be split for the others to have work.
  source: unevenly(keyset<{ id: number }>({ table: 'source', key: ['id'] }), [2, 4]),
  chunkSize: 3,
  parallel: 3,
  readAhead: true,
  async process(chunk, { tx, publish }) {
    await tx`insert into target ${tx(chunk, 'id')}`
    await publish(chunk.map(({ id }) => ({ type: 'row.copied', subject: String(id), data: { id } })))
  },
  async completed({ tx }) {
    await tx`insert into hooks values ('completed')`
  },
})

/** The source and half of the target are in another database than the position. */
const twoDatabases = defineBatch({
  name: 'copy-between',
  source: { ...keyset<{ id: number }>({ table: 'source', key: ['id'] }), database: 'billing' },
  chunkSize: 13,
  participants: ['billing'],
  async process(chunk, { tx, txs }) {
    await tx`insert into target ${tx(chunk, 'id')}`
    await txs.billing`insert into target ${txs.billing(chunk, 'id')}`
  },
  async completed({ tx, txs }) {
    await tx`insert into hooks values ('completed')`
    await txs.billing`insert into hooks values ('completed')`
  },
})

export const chunkRanges = scenarioOf(rangesBatch)
export const chunkTwoDatabases = scenarioOf(twoDatabases)

function scenarioOf(batch: BatchDefinition): Scenario {
  const definitions = new Map([[batch.name, batch]])
  const run = (ctx: JobContext, jobId: string) =>
    runBatch(ctx, definitions, jobId, new AbortController().signal, { backoffMs: 1, maxBackoffMs: 50 })
  return {
    async arrange({ databases }) {
      for (const name of databases.names) {
        const { sql } = databases.get(name)
        await sql`create table source (id int primary key)`
        await sql`create table target (id int not null)`
        await sql`create table hooks (what text)`
        await sql`insert into source select generate_series(1, ${rows}::int)`
      }
    },
    async act(ctx) {
      const { jobId } = await enqueueBatchJob(ctx, batch, {}, 'test')
      await run(ctx, jobId)
    },
    async finish(ctx) {
      const [job] = await ctx.databases.primary.sql<{ id: string }[]>`select id from holdfast.batch_jobs`
      assert.equal(await run(ctx, job?.id ?? ''), 'completed')
    },
    async check(ctx, killedAt) {
      const { databases } = ctx
      for (const name of databases.names) {
        const { sql } = databases.get(name)
        const copied = await sql<{ id: number }[]>`select id from target order by id`
        assert.deepEqual(
          copied.map(({ id }) => id),
          Array.from({ length: rows }, (_, i) => i + 1),
        )
        assert.equal((await sql`select from hooks`).length, 1)
      }
      const [job] = await databases.primary.sql<{ id: string }[]>`select id from holdfast.batch_jobs`
      const proof = await verifyBatch(ctx, definitions, job?.id ?? '')
      assert.equal(proof.proved, true)
      if (killedAt === 'batch.range-split')
        assert.ok(proof.ranges > (batch.parallel ?? 1), 'no range was split')
    },
  }
}
