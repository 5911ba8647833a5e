import { setTimeout as pause } from 'node:timers/promises'
import { createDatabase } from '../src/db/create-database.ts'
import { createHoldfast, type Holdfast } from '../src/workers/holdfast.ts'
import { BenchWorker } from './bench-worker.ts'
import { openBenchContext } from './context.ts'
import { atMost, type Bench, type Measurement, percentile } from './measure.ts'
import { sampleEvent } from './outbox-to-redis.ts'
import { StreamReader } from './stream-reader.ts'

const stream = 'bench-latency'
const atOnce = 8

/**
 * From the call of commitDistributed, which commits one event, to the moment in which a reader that blocks on the stream
 * has it. The worker is a process of its own. Idle: one commit at a time, with pauses. Half load: commits come at half the
 * rate that this producer reaches beside this worker, whatever became of those before.
 */
export const outboxLatency: Bench = async (servers, quick) => {
  const samples = quick ? 200 : 500
  const url = await createDatabase(servers.postgres, 'bench_latency')
  // Brings the schema up to date.
  await (await openBenchContext(url)).close()
  const worker = new BenchWorker(url, servers.redis, stream)
  const reader = new StreamReader(servers.redis, stream)
  const holdfast = await createHoldfast({ databases: { primary: url }, redis: servers.redis })
  try {
    const commits = new Commits(holdfast, reader)
    const rows = await worker.whileAlive(measure(commits, samples, quick ? 2_000 : 5_000))
    await worker.stop()
    return rows
  } finally {
    worker.kill()
    await holdfast.close()
    await reader.close()
  }
}

async function measure(commits: Commits, samples: number, forMs: number): Promise<Measurement[]> {
  for (let i = 0; i < 50; i++) await (await commits.once()).seenMs
  const idle: number[] = []
  const calls: number[] = []
  for (let i = 0; i < samples; i++) {
    await pause(20 + Math.random() * 40)
    const { calledMs, seenMs } = await commits.once()
    calls.push(calledMs)
    idle.push(await seenMs)
  }
  const perSecond = await commits.rate(forMs)
  process.stderr.write(
    `  commitDistributed itself: ${percentile(calls, 0.5).toFixed(1)} ms; with its begin: ${Math.round(perSecond)}/s, ${atOnce} at once\n`,
  )
  const loaded = await commits.at(perSecond / 2, Math.max(samples, Math.ceil((perSecond / 2) * 3)))
  const p50 = percentile(idle, 0.5)
  const p99 = percentile(idle, 0.99)
  const row = (name: string, ours: number, limit: number, bar: number) =>
    atMost({ name: `commit to stream, ${name}`, unit: 'ms', ours, limit, bar })
  return [
    row('idle p50', p50, 10, 1),
    row('idle p99', p99, 50, 1),
    row('half load p50, against idle', percentile(loaded, 0.5), p50, 0),
    row('half load p99, against idle', percentile(loaded, 0.99), p99, 0),
  ]
}

class Commits {
  readonly #holdfast: Holdfast
  readonly #reader: StreamReader
  #serial = 0

  constructor(holdfast: Holdfast, reader: StreamReader) {
    this.#holdfast = holdfast
    this.#reader = reader
  }

  /** One transaction with one event. Milliseconds from the commit's call to its return, and to the event in the stream. */
  async once(): Promise<{ calledMs: number; seenMs: Promise<number> }> {
    const order = ++this.#serial
    const name = `latency-${order}`
    const { staged } = await this.#holdfast.beginDistributed(name, async (tx) => {
      const [id = ''] = await this.#holdfast.publish(tx, sampleEvent(order))
      return id
    })
    const seen = this.#reader.seen(staged)
    const started = performance.now()
    await this.#holdfast.commitDistributed(name)
    return { calledMs: performance.now() - started, seenMs: seen.then((at) => at - started) }
  }

  /** How many are committed per second, when there are always some on their way; returns when all have arrived. */
  async rate(forMs: number): Promise<number> {
    const started = performance.now()
    const seen: Promise<number>[] = []
    const producers = Array.from({ length: atOnce }, async () => {
      while (performance.now() - started < forMs) seen.push((await this.once()).seenMs)
    })
    await Promise.all(producers)
    const rate = seen.length / ((performance.now() - started) / 1_000)
    await Promise.all(seen)
    return rate
  }

  /** Begins so many, evenly spread, at this rate per second. */
  async at(perSecond: number, samples: number): Promise<number[]> {
    const started = performance.now()
    const running: Promise<number>[] = []
    for (let i = 0; i < samples; i++) {
      const waitMs = started + (i * 1_000) / perSecond - performance.now()
      if (waitMs > 1) await pause(waitMs)
      running.push(this.once().then(({ seenMs }) => seenMs))
    }
    return Promise.all(running)
  }
}
