import { createDatabase } from '../src/db/create-database.ts'
import { createRows, runToEnd, updateRows } from './batch-rows.ts'
import { openBenchContext } from './context.ts'
import { type Bench, compare, type Measurement } from './measure.ts'

/** The same batch with two and with four ranges at once, against one. */
export const batchRanges: Bench = async (servers, quick) => {
  const rows = quick ? 50_000 : 200_000
  const { ctx, close } = await openBenchContext(await createDatabase(servers.postgres, 'bench_batch_ranges'))
  const { sql } = ctx.databases.primary
  try {
    await createRows(sql, rows)
    const rate = async (parallel: number): Promise<number> => {
      const started = performance.now()
      await runToEnd(ctx, updateRows({ parallel }))
      const seconds = (performance.now() - started) / 1_000
      await sql`vacuum bench_rows`
      return rows / seconds
    }
    const measured: Measurement[] = []
    for (const parallel of [2, 4]) {
      const what = { name: `batch in ${parallel} ranges, against one`, unit: 'rows/s', bar: 0 }
      const rounds = quick ? 3 : 5
      measured.push(
        await compare(
          { ...what, rounds },
          () => rate(parallel),
          () => rate(1),
        ),
      )
    }
    return measured
  } finally {
    await close()
  }
}
