import { createDatabase } from '../src/db/create-database.ts'
import { chunkSize, createRows, type Row, runToEnd, update, updateRows } from './batch-rows.ts'
import { openBenchContext } from './context.ts'
import { type Bench, compare, type Measurement } from './measure.ts'

/**
 * A batch that reads 1,000 rows and updates them, against the same chunks in plain transactions that remember their
 * position, and against one single UPDATE of all rows.
 */
export const batch: Bench = async (servers, quick) => {
  const rows = quick ? 50_000 : 200_000
  const { ctx, close } = await openBenchContext(await createDatabase(servers.postgres, 'bench_batch'))
  const { primary } = ctx.databases
  const { sql } = primary
  await createRows(sql, rows)
  await sql`create table bench_position (id int primary key, after bigint not null)`
  const ours = () => runToEnd(ctx, updateRows())
  const readingAhead = () => runToEnd(ctx, updateRows({ readAhead: true }))
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
  const against = (name: string, bar: number, limit: () => Promise<void>, run = ours): Promise<Measurement> =>
    compare(
      { name, unit: 'rows/s', bar, rounds },
      () => rate(run),
      () => rate(limit),
    )
  try {
    return [
      await against('batch of 1,000-row chunks, against plain transactions', 0.9, plain),
      await against('the same with readAhead: true', 0, plain, readingAhead),
      await against('batch of 1,000-row chunks, against one UPDATE of all', 0, single),
    ]
  } finally {
    await close()
  }
}
