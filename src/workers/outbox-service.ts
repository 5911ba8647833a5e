import { InvalidConfigError } from '../db/errors.ts'
import { countShards } from '../db/outbox-cursors.ts'
import { Circuit } from '../jobs/circuit.ts'
import { CircuitRecorder, reportingTo } from '../jobs/circuit-reporting.ts'
import { OutboxWatch } from '../jobs/outbox-watch.ts'
import { publishMs } from '../jobs/page-run.ts'
import { Relay } from '../jobs/publish-outbox.ts'
import { routeTo } from '../jobs/routes.ts'
import { runOutbox } from '../jobs/run-outbox.ts'
import type { OpenSink, Sink } from '../jobs/sinks/sink.ts'
import { sinkContext } from '../jobs/sinks/sink-context.ts'
import type { Context } from './context.ts'
import type { QueuedJob } from './queues.ts'

const pageSize = 1_000
const maxBackoffMs = 30_000

/** One sink of this process: open, its circuit, and the shards that run here now. */
type Running = { sink: Sink; open: OpenSink; circuit: Circuit; shards: Set<number> }

/** The outbox side of a worker: its sinks, one look-out for all idle cursors, one queue job for each (sink, shard). */
export class OutboxService {
  readonly #ctx: Context
  readonly #watch: OutboxWatch
  readonly #recorder: CircuitRecorder
  readonly #sinks = new Map<string, Running>()
  #shards = 1
  #unlisten: (() => Promise<void>) | undefined

  constructor(ctx: Context) {
    this.#ctx = ctx
    const { sql } = ctx.databases.primary
    this.#recorder = new CircuitRecorder(sql, ctx.lease.id, ctx.log)
    this.#watch = new OutboxWatch(sql, ctx.config.timing.pollMs)
  }

  async start(): Promise<void> {
    const { config, databases, log } = this.#ctx
    const { leaseMs, lockMs } = config.timing
    this.#shards = await countShards(databases.primary.sql)
    for (const [name, sink] of config.sinks) {
      const context = sinkContext(this.#ctx, name, leaseMs + lockMs + publishMs + maxBackoffMs)
      const shards = new Set<number>()
      const circuit = this.#circuit(name, shards)
      const open = reportingTo(circuit, await sink.open(context))
      this.#sinks.set(name, { sink, open, circuit, shards })
    }
    if (this.#sinks.size === 0) return
    this.#unlisten = await this.#ctx.outboxWakeup
      .listen(() => this.#watch.wake())
      .catch((err: unknown) => {
        log.warn({ err }, 'no wake-ups: the relays look by themselves')
        return undefined
      })
  }

  /** How many queue jobs may run here at once. */
  get concurrency(): number {
    return Math.max(1, this.#sinks.size * this.#shards)
  }

  get sinks(): string[] {
    return [...this.#sinks.keys()]
  }

  jobs(): QueuedJob[] {
    return this.sinks.flatMap((sink) =>
      Array.from({ length: this.#shards }, (_, shard) => ({
        name: 'publish-outbox',
        id: `publish-outbox-${sink}-${shard}`,
        data: { sink, shard: String(shard) },
      })),
    )
  }

  /** Runs the relay of one (sink, shard). */
  async publish(sink: string, shard: number, signal: AbortSignal): Promise<void> {
    const running = this.#sinks.get(sink)
    if (!running) throw new InvalidConfigError([`this worker's config has no sink ${sink}`])
    const { open, circuit, shards } = running
    const { policy, maxEventBytes } = running.sink
    const { routes } = this.#ctx.config
    const wants = routeTo(sink, routes)
    const relay = new Relay(this.#ctx, open, {
      sink,
      shard,
      pageSize,
      ...(routes === undefined ? {} : { wants: (event) => wants(event.type) }),
      ...(policy === undefined ? {} : { policy }),
      ...(maxEventBytes === undefined ? {} : { maxEventBytes }),
    })
    const retryMs = this.#ctx.config.timing.pollMs
    const onBlocked = (error: Error | undefined) =>
      this.#recorder.say([{ sink, shard }], error ? 'blocked' : 'closed', error ? 1 : 0, error)
    shards.add(shard)
    try {
      const parts = { circuit, watch: this.#watch, retryMs, maxRetryMs: maxBackoffMs, onBlocked }
      await runOutbox(this.#ctx, relay, parts, signal)
    } finally {
      shards.delete(shard)
    }
  }

  async stop(): Promise<void> {
    await this.#unlisten?.()
    await this.#recorder.settled()
    await Promise.all([...this.#sinks.values()].map(({ open }) => open.close()))
  }

  #circuit(sink: string, shards: ReadonlySet<number>): Circuit {
    const { clock, config, log } = this.#ctx
    return new Circuit({
      clock,
      firstMs: config.timing.pollMs,
      maxMs: maxBackoffMs,
      onChange: (state, failures, error) => {
        if (state === 'closed') log.info({ sink }, 'the sink takes events again')
        else log.warn({ err: error, sink, failures }, 'the sink takes nothing')
        const cursors = [...shards].map((shard) => ({ sink, shard }))
        this.#recorder.say(cursors, state, failures, error)
      },
    })
  }
}
