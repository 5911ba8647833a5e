import { Counter, Gauge, type Registry } from 'prom-client'
import type { CircuitState } from '../db/outbox-circuits.ts'
import type { Cursor } from '../db/outbox-cursors.ts'
import type { OutboxStats } from '../db/outbox-stats.ts'

const circuitStates: readonly CircuitState[] = ['closed', 'open', 'blocked']
const byCursor = ['sink', 'shard'] as const

/** The outbox as metrics, by sink and shard: gauges as of the last look, and counters of what this process published. */
export class OutboxMetrics {
  readonly #backlog: Gauge<'sink' | 'shard'>
  readonly #oldest: Gauge<'sink' | 'shard'>
  readonly #parked: Gauge<'sink' | 'shard'>
  readonly #dead: Gauge<'sink' | 'shard'>
  readonly #circuit: Gauge<'sink' | 'shard' | 'state'>
  readonly #published: Counter<'sink' | 'shard'>
  readonly #rejected: Counter<'sink' | 'shard'>

  constructor(registry: Registry) {
    const registers = [registry]
    this.#backlog = new Gauge({
      name: 'holdfast_outbox_backlog',
      help: 'Committed events that the cursor has not passed, also those that no route sends to this sink; counted up to 100,000 in each range.',
      labelNames: byCursor,
      registers,
    })
    this.#oldest = new Gauge({
      name: 'holdfast_outbox_oldest_unpublished_age_seconds',
      help: 'Age of the oldest event in the backlog; 0 when there is none.',
      labelNames: byCursor,
      registers,
    })
    this.#parked = new Gauge({
      name: 'holdfast_outbox_parked',
      help: 'Rejected events that are tried again, and those that wait behind another of their key.',
      labelNames: byCursor,
      registers,
    })
    this.#dead = new Gauge({
      name: 'holdfast_outbox_dead',
      help: 'Rejected events that were given up, to be redriven or discarded by hand.',
      labelNames: byCursor,
      registers,
    })
    this.#circuit = new Gauge({
      name: 'holdfast_outbox_circuit',
      help: '1 for the state that the circuit is in, 0 for the others.',
      labelNames: [...byCursor, 'state'],
      registers,
    })
    this.#published = new Counter({
      name: 'holdfast_outbox_published_total',
      help: 'Events that a sink took.',
      labelNames: byCursor,
      registers,
    })
    this.#rejected = new Counter({
      name: 'holdfast_outbox_rejected_total',
      help: 'Events that a sink rejected while it took others, each time.',
      labelNames: byCursor,
      registers,
    })
  }

  /** Sets the gauges. A sink that is not among these any more has none. */
  observe({ cursors }: Pick<OutboxStats, 'cursors'>): void {
    for (const gauge of [this.#backlog, this.#oldest, this.#parked, this.#dead, this.#circuit]) gauge.reset()
    for (const cursor of cursors) {
      const labels = labelsOf(cursor)
      this.#backlog.set(labels, cursor.backlog)
      this.#oldest.set(labels, cursor.oldestUnpublishedSeconds)
      this.#parked.set(labels, cursor.parked)
      this.#dead.set(labels, cursor.dead)
      for (const state of circuitStates)
        this.#circuit.set({ ...labels, state }, state === cursor.circuit.state ? 1 : 0)
    }
  }

  published(cursor: Cursor, events: number): void {
    this.#published.inc(labelsOf(cursor), events)
  }

  rejected(cursor: Cursor, events: number): void {
    this.#rejected.inc(labelsOf(cursor), events)
  }
}

function labelsOf({ sink, shard }: Cursor): { sink: string; shard: string } {
  return { sink, shard: String(shard) }
}
