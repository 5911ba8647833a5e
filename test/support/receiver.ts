import type { CloudEvent } from '../../src/db/cloud-event.ts'
import { RejectedEventError } from '../../src/db/errors.ts'
import type { JobContext } from '../../src/jobs/context.ts'
import { defineSink, type SinkSpec } from '../../src/jobs/sinks/define-sink.ts'
import type { OpenSink, Sink } from '../../src/jobs/sinks/sink.ts'
import { sinkContext } from '../../src/jobs/sinks/sink-context.ts'

export type Received = { n: number; key: string | null; messageId: string; eventId: string }

/**
 * The service behind a sink that remembers nothing: it writes what it takes into a table of its own, in the order in which
 * it comes, and rejects the numbers it is told to.
 */
export class Receiver {
  /** what it rejects, and whether for good */
  readonly rejects = new Map<number, 'for now' | 'for good'>()
  /** how often each number came, taken or not */
  readonly tried = new Map<number, number>()
  /** what happens before it answers */
  before: (n: number) => Promise<void> | void = () => undefined
  readonly #ctx: JobContext

  private constructor(ctx: JobContext) {
    this.#ctx = ctx
  }

  static async create(ctx: JobContext): Promise<Receiver> {
    await ctx.databases.primary.sql`
      create table if not exists received (
        seq int generated always as identity, event_id uuid not null, message_id text not null, key text, n int not null)`
    return new Receiver(ctx)
  }

  /** The sink of one process. */
  sink(spec: Partial<SinkSpec> = {}): Sink {
    return defineSink({
      ...spec,
      deliver: async (event, { messageId }) => this.#take(event, messageId),
    })
  }

  async open(spec: Partial<SinkSpec> = {}): Promise<OpenSink> {
    return this.sink(spec).open(sinkContext(this.#ctx, 'sink'))
  }

  reject(...numbers: number[]): void {
    for (const n of numbers) this.rejects.set(n, 'for now')
  }

  heal(): void {
    this.rejects.clear()
  }

  /** In the order in which they were taken. */
  async received(): Promise<Received[]> {
    return this.#ctx.databases.primary.sql<Received[]>`
      select n, key, message_id as "messageId", event_id as "eventId" from received order by seq`
  }

  /** The numbers of one key, or of events without one. */
  async numbers(key: string | null): Promise<number[]> {
    const rows = await this.received()
    return rows.filter((row) => row.key === key).map(({ n }) => n)
  }

  async #take(event: CloudEvent, messageId: string): Promise<void> {
    const { n } = event.data as { n: number }
    this.tried.set(n, (this.tried.get(n) ?? 0) + 1)
    await this.before(n)
    const rejection = this.rejects.get(n)
    if (rejection)
      throw new RejectedEventError(`${n} is refused ${rejection}`, { permanent: rejection === 'for good' })
    const key = event.partitionkey ?? null
    await this.#ctx.databases.primary.sql`
      insert into received (event_id, message_id, key, n) values (${event.id}, ${messageId}, ${key}, ${n})`
  }
}
