import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { createDatabase } from '../src/db/create-database.ts'
import { createRows } from './batch-rows.ts'
import { openBenchContext } from './context.ts'
import { atMost, type Bench, type BenchServers, median } from './measure.ts'

/** The peak memory of a process that runs a batch of five million rows, against one of fifty thousand. */
export const batchMemory: Bench = async (servers, quick) => {
  const few = await fill(servers, 'bench_batch_few', 50_000)
  const many = await fill(servers, 'bench_batch_many', quick ? 500_000 : 5_000_000)
  const peaks: { few: number; many: number }[] = []
  for (let round = 0; round < (quick ? 3 : 1); round++)
    peaks.push({ few: await peakOf(few), many: await peakOf(many) })
  const row = atMost({
    name: `peak memory for ${quick ? '500,000' : '5,000,000'} rows in 4 ranges, against 50,000`,
    unit: 'MB',
    ours: median(peaks.map((peak) => peak.many)),
    limit: median(peaks.map((peak) => peak.few)),
    bar: 0.83,
  })
  return [row]
}

async function fill(servers: BenchServers, database: string, rows: number): Promise<string> {
  const url = await createDatabase(servers.postgres, database)
  const { ctx, close } = await openBenchContext(url)
  try {
    await createRows(ctx.databases.primary.sql, rows)
  } finally {
    await close()
  }
  return url
}

async function peakOf(url: string): Promise<number> {
  const { stdout } = await promisify(execFile)(process.execPath, [
    join(import.meta.dirname, 'batch-process.js'),
    url,
  ])
  return Number(stdout)
}
