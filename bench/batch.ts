import { createDatabase } from '../src/db/create-database.ts'
import { type BatchDefinition, defineBatch } from '../src/jobs/batch-definition.ts'
import { enqueueBatchJob } from '../src/jobs/enqueue-batch.ts'
import { keyset } from '../src/jobs/keyset.ts'
import { runBatch } from '../src/jobs/run-batch.ts'
import { openBenchContext } from './context.ts'
import { type Bench, compare, type Measurement } from './measure.ts'

/** The driver gives a bigint as text. */
type Row = { id: string; amount: number }

const chunkSize = 1_000
const none = new AbortController().signal

/**
 * A batch that reads 1,000 rows and updates them, against the same chunks in plain transactions that remember their
 * position, and against one single UPDATE of all rows.
 */
export const batch: Bench = async (servers, quick) => {
  const rows = quick ? 50_000 : 200_000
  const { ctx, close } = await openBenchContext(await createDatabase(servers.postgres, 'bench_batch'))
  const { primary } = ctx.databases
  const { sql } = primary
  // Vacuum would come when it likes; a side's round ends with one.
  await sql`create table bench_rows (id bigint primary key, amount int not null, cents bigint)
    with (autovacuum_enabled = off, fillfactor = 50)`
  await sql`insert into bench_rows select g, g % 1000 from generate_series(1, ${rows}::int) g`
  await sql`create table bench_position (id int primary key, after bigint not null)`
  const definition = defineBatch({
    name: 'bench',
    source: keyset<Row>({ table: 'bench_rows', key: ['id'] }),
    chunkSize,
    process: (chunk, { tx }) => update(tx, chunk),
  }) as BatchDefinition
  const definitions = new Map([[definition.name, definition]])

  const ours = async () => {
    const { jobId } = await enqueueBatchJob(ctx, definition, {}, 'bench')
    if ((await runBatch(ctx, definitions, jobId, none)) !== 'completed') throw new Error('the batch failed')
  }
  const plain = async () => {
    await sql`insert into bench_position values (1, 0) on conflict (id) do update set after = 0`
    for (let after: string | undefined = '0'; after !== undefined; ) {
      const from: string = after
      after = await primary.transaction(async (tx) => {
        const chunk = await tx<Row[]>`
          select * from bench_rows where id > ${from} order by id limit ${chunkSize}`
        const last = chunk.at(-1)
        if (!last) return undefined
        await update(tx, chunk)
        await tx`update bench_position set after = ${last.id} where id = 1`
        return chunk.length < chunkSize ? undefined : last.id
      })
    }
  }
  const single = async () => {
    await sql`update bench_rows set cents = amount * 100::bigint`
  }
  const rate = async (run: () => Promise<void>): Promise<number> => {
    const started = performance.now()
    await run()
    const seconds = (performance.now() - started) / 1_000
    await sql`vacuum bench_rows`
    return rows / seconds
  }
  const rounds = quick ? 3 : 7
  const against = (name: string, bar: number, limit: () => Promise<void>): Promise<Measurement> =>
    compare(
      { name, unit: 'rows/s', bar, rounds },
      () => rate(ours),
      () => rate(limit),
    )
  try {
    return [
      await against('batch of 1,000-row chunks, against plain transactions', 0.9, plain),
      await against('batch of 1,000-row chunks, against one UPDATE of all', 0, single),
    ]
  } finally {
    await close()
  }
}

type Tag = Parameters<BatchDefinition['process']>[1]['tx']

async function update(tx: Tag, chunk: readonly Row[]): Promise<void> {
  await tx`
    update bench_rows r set cents = v.cents
    from unnest(${chunk.map(({ id }) => id)}::bigint[], ${chunk.map(({ amount }) => amount * 100)}::bigint[]) v (id, cents)
    where r.id = v.id`
}
