import type { Sql } from '../src/db/tx.ts'
import { type BatchDefinition, defineBatch } from '../src/jobs/batch-definition.ts'
import type { JobContext } from '../src/jobs/context.ts'
import { enqueueBatchJob } from '../src/jobs/enqueue-batch.ts'
import { keyset } from '../src/jobs/keyset.ts'
import { runBatch } from '../src/jobs/run-batch.ts'

/** The driver gives a bigint as text. */
export type Row = { id: string; amount: number }

export const chunkSize = 1_000

/** Vacuum would come when it likes; a side's round ends with one. */
export async function createRows(sql: Sql, rows: number): Promise<void> {
  await sql`create table bench_rows (id bigint primary key, amount int not null, cents bigint)
    with (autovacuum_enabled = off, fillfactor = 50)`
  await sql`insert into bench_rows select g, g % 1000 from generate_series(1, ${rows}::int) g`
  await sql`analyze bench_rows`
}

/** Reads chunks of 1,000 rows, and updates them. */
export function updateRows(options: Pick<BatchDefinition, 'parallel' | 'readAhead'> = {}): BatchDefinition {
  return defineBatch({
    name: 'bench',
    source: keyset<Row>({ table: 'bench_rows', key: ['id'] }),
    chunkSize,
    ...options,
    process: (chunk, { tx }) => update(tx, chunk),
  })
}

export async function update(sql: Sql, chunk: readonly Row[]): Promise<void> {
  await sql`
    update bench_rows r set cents = v.cents
    from unnest(${chunk.map(({ id }) => id)}::bigint[], ${chunk.map(({ amount }) => amount * 100)}::bigint[]) v (id, cents)
    where r.id = v.id`
}

export async function runToEnd(ctx: JobContext, definition: BatchDefinition): Promise<void> {
  const { jobId } = await enqueueBatchJob(ctx, definition, {}, 'bench')
  const definitions = new Map([[definition.name, definition]])
  const outcome = await runBatch(ctx, definitions, jobId, new AbortController().signal)
  if (outcome !== 'completed') throw new Error(`the batch ended ${outcome}`)
}
