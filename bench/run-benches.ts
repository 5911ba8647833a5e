import { mkdtemp, rm } from 'node:fs/promises'
import { availableParallelism, loadavg, tmpdir } from 'node:os'
import { join } from 'node:path'
import { Command } from 'commander'
import { startEmbedded } from '../src/db/embedded/server.ts'
import { startRedis } from '../test/support/redis-server.ts'
import { batch } from './batch.ts'
import { batchMemory } from './batch-memory.ts'
import { batchRanges } from './batch-ranges.ts'
import { idempotency } from './idempotency.ts'
import { jobs } from './jobs.ts'
import type { Bench, BenchServers, Measurement } from './measure.ts'
import { outbox } from './outbox.ts'
import { stage } from './stage.ts'

/** `npm run bench -- NAME… [--quick] [--json]`: ratios against the best that a plain client does on this machine. */
const suites: Readonly<Record<string, Readonly<Record<string, Bench>>>> = {
  outbox,
  stage: { stage },
  batch: { batch, 'batch-ranges': batchRanges, 'batch-memory': batchMemory },
  idempotency: { idempotency },
  jobs: { jobs },
}
const known = {
  ...suites,
  ...Object.fromEntries(
    Object.values(suites)
      .flatMap((suite) => Object.entries(suite))
      .filter(([name]) => !(name in suites))
      .map(([name, bench]) => [name, { [name]: bench }]),
  ),
}

const program = new Command('bench')
  .argument('[names...]', `which: ${Object.keys(known).join(', ')}; default ${Object.keys(suites).join(' ')}`)
  .option('--quick', 'fewer rounds; the ratios scatter more')
  .option('--json', 'print an array of {name, unit, ours, limit, ratio, bar} as the last line')
  .parse()
const { quick = false, json = false } = program.opts<{ quick?: boolean; json?: boolean }>()
const names = program.args.length > 0 ? program.args : Object.keys(suites)
const unknown = names.filter((name) => !(name in known))
if (unknown.length > 0)
  program.error(`unknown: ${unknown.join(', ')}; known: ${Object.keys(known).join(', ')}`, { exitCode: 2 })

const [load = 0] = loadavg()
if (load > availableParallelism() / 2)
  process.stderr.write(
    `this machine does other work (load ${load.toFixed(1)} on ${availableParallelism()} cores): milliseconds say little now, ratios scatter\n`,
  )
const dir = await mkdtemp(join(tmpdir(), 'holdfast-bench-'))
const postgres = await startEmbedded({ dir })
const redis = await startRedis()
const measured: Measurement[] = []
try {
  if (!redis)
    throw new Error('the benchmarks need redis-server on the PATH (Debian: apt-get install redis-server)')
  const servers: BenchServers = { postgres: postgres.url, redis: redis.url }
  // Once each, also where a part is named beside its whole.
  const chosen = new Map(names.flatMap((name) => Object.entries(known[name] ?? {})))
  for (const [name, bench] of chosen) {
    process.stderr.write(`${name} …\n`)
    for (const m of await bench(servers, quick)) {
      measured.push(m)
      process.stderr.write(
        `  ${m.name}: ${m.ours.toLocaleString('en-US')} against ${m.limit.toLocaleString('en-US')} ${m.unit}, ratio ${m.ratio} (${m.bar === 0 ? 'for information' : `bar ${m.bar}${m.ratio < m.bar ? ', missed' : ''}`})\n`,
      )
    }
  }
} finally {
  await redis?.stop()
  await postgres.release()
  await rm(dir, { recursive: true, force: true })
}
if (json) process.stdout.write(`${JSON.stringify(measured)}\n`)
