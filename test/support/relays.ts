import { countShards } from '../../src/db/outbox-cursors.ts'
import type { JobContext } from '../../src/jobs/context.ts'
import { type Drained, Relay, type RelayOptions } from '../../src/jobs/publish-outbox.ts'
import type { OpenSink } from '../../src/jobs/sinks/sink.ts'

/** The relays of all shards of one sink, as a worker runs them side by side. */
export class Relays {
  readonly #ctx: JobContext
  readonly #sink: OpenSink
  readonly #options: Omit<RelayOptions, 'shard'>
  #relays: Relay[] | undefined

  constructor(ctx: JobContext, sink: OpenSink, options: Omit<RelayOptions, 'shard'>) {
    this.#ctx = ctx
    this.#sink = sink
    this.#options = options
  }

  async all(): Promise<Relay[]> {
    const shards = await countShards(this.#ctx.databases.primary.sql)
    this.#relays ??= Array.from(
      { length: shards },
      (_, shard) => new Relay(this.#ctx, this.#sink, { ...this.#options, shard }),
    )
    return this.#relays
  }

  /** Until nothing is left, as a worker does it: whoever stepped back looks again. */
  async drainToEnd(signal: AbortSignal): Promise<Drained['outcome']> {
    for (;;) {
      const { outcome } = await this.drain(signal)
      if (outcome !== 'stepped-back') return outcome
    }
  }

  /** Once, until nothing is left. Of the outcomes the least idle one; of the errors the first, when all have ended. */
  async drain(signal: AbortSignal): Promise<Drained> {
    const ended = await Promise.allSettled((await this.all()).map((relay) => relay.drain(signal)))
    const failed = ended.find((one) => one.status === 'rejected')
    if (failed) throw failed.reason
    const drained = ended.flatMap((one) => (one.status === 'fulfilled' ? one.value : []))
    const outcomes = drained.map(({ outcome }) => outcome)
    const outcome = (['stopped', 'stepped-back'] as const).find((one) => outcomes.includes(one)) ?? 'idle'
    return { published: drained.reduce((sum, { published }) => sum + published, 0), outcome }
  }
}
