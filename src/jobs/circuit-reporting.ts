import type { Logger } from 'pino'
import type { Sql } from '../db/databases.ts'
import { type CircuitState, recordCircuit } from '../db/outbox-circuits.ts'
import type { Cursor } from '../db/outbox-cursors.ts'
import type { Circuit } from './circuit.ts'
import type { OpenSink, Page, Published } from './sinks/sink.ts'

/** A page that was taken closes the circuit at once: a shard that is never at rest would keep the others waiting. */
export function reportingTo(circuit: Circuit, sink: OpenSink): OpenSink {
  return Object.assign(Object.create(sink) as OpenSink, {
    async publish(page: Page, signal: AbortSignal): Promise<Published> {
      const published = await sink.publish(page, signal)
      if (!published.stopped) circuit.succeeded()
      return published
    },
  })
}

/** Records what is said of circuits for other processes to see, in the order in which it is said. */
export class CircuitRecorder {
  readonly #sql: Sql
  readonly #worker: string
  readonly #log: Logger
  #last: Promise<void> = Promise.resolve()

  constructor(sql: Sql, worker: string, log: Logger) {
    this.#sql = sql
    this.#worker = worker
    this.#log = log
  }

  /** Does not wait; what is lost of it is said again with the next change. */
  say(cursors: readonly Cursor[], state: CircuitState, failures: number, error?: Error): void {
    const said = { state, failures, error: error?.message.slice(0, 1_000), worker: this.#worker }
    this.#last = this.#last
      .then(() => recordCircuit(this.#sql, cursors, said))
      .catch((err: unknown) => this.#log.warn({ err, cursors }, 'the state of a circuit was not recorded'))
  }

  /** Until what was said so far is recorded. */
  async settled(): Promise<void> {
    await this.#last
  }
}
