import type { Logger } from 'pino'
import { Counter, Gauge, Histogram, Registry } from 'prom-client'
import type { Moved } from '../db/attempts.ts'
import type { Status } from '../db/distributed-transactions.ts'
import { JobMetrics } from './job-metrics.ts'
import { OutboxMetrics } from './outbox-metrics.ts'
import { isEnd } from './transitions.ts'

const open: readonly Status[] = ['started', 'pending', 'committing', 'rolling_back']

/**
 * What happens, as log lines and as metrics. Whoever's compare-and-set moved an attempt reports it, so over all processes
 * each step is counted once. Ids go to the log alone.
 */
export class Telemetry {
  readonly registry = new Registry()
  readonly outbox = new OutboxMetrics(this.registry)
  readonly jobs = new JobMetrics(this.registry)
  readonly #log: Logger
  readonly #started = new Counter({
    name: 'holdfast_distributed_transactions_started_total',
    help: 'Distributed transactions that were begun.',
    registers: [this.registry],
  })
  readonly #finished = new Counter({
    name: 'holdfast_distributed_transactions_finished_total',
    help: 'Distributed transactions that came to their end, by outcome.',
    labelNames: ['outcome'],
    registers: [this.registry],
  })
  readonly #duration = new Histogram({
    name: 'holdfast_distributed_transaction_duration_seconds',
    help: 'From the begin of a distributed transaction to its end, by outcome.',
    labelNames: ['outcome'],
    buckets: [0.005, 0.02, 0.1, 0.5, 2, 10, 60, 600, 3_600, 86_400],
    registers: [this.registry],
  })
  readonly #open = new Gauge({
    name: 'holdfast_distributed_transactions_open',
    help: 'Distributed transactions that are not at their end, by status, as of the last recovery round.',
    labelNames: ['status'],
    registers: [this.registry],
  })
  readonly #oldest = new Gauge({
    name: 'holdfast_in_doubt_oldest_age_seconds',
    help: 'Age of the oldest prepared transaction of this installation, as of the last recovery round.',
    registers: [this.registry],
  })
  readonly #recovered = new Counter({
    name: 'holdfast_recovered_transactions_total',
    help: 'Transactions in doubt that recovery finished, by outcome.',
    labelNames: ['outcome'],
    registers: [this.registry],
  })
  readonly #alerts = new Counter({
    name: 'holdfast_alerts_total',
    help: 'Alerts that were raised, by kind.',
    labelNames: ['kind'],
    registers: [this.registry],
  })
  readonly #idempotent = new Counter({
    name: 'holdfast_idempotent_calls_total',
    help: 'Calls with an idempotency key, by what came of them.',
    labelNames: ['outcome'],
    registers: [this.registry],
  })

  constructor(log: Logger) {
    this.#log = log
  }

  started(name: string, attempt: string, correlationId: string): void {
    this.#started.inc()
    this.#log.debug({ name, attempt, correlationId }, 'started')
  }

  moved(to: Status, attempt: string, { name, correlationId, ageSeconds }: Moved): void {
    const end = isEnd(to)
    if (end) {
      this.#finished.inc({ outcome: to })
      this.#duration.observe({ outcome: to }, ageSeconds)
    }
    this.#log[end ? 'info' : 'debug']({ name, attempt, correlationId }, to)
  }

  recovered(outcome: 'committed' | 'rolledBack', name: string, attempt: string): void {
    this.#recovered.inc({ outcome: outcome === 'committed' ? 'committed' : 'rolled_back' })
    this.#log.info({ name, attempt, outcome }, 'recovered a transaction in doubt')
  }

  /** `failed`: the work did, or its end is to be asked for. */
  idempotentCall(outcome: 'executed' | 'replayed' | 'in_flight' | 'mismatch' | 'failed'): void {
    this.#idempotent.inc({ outcome })
  }

  alerted(kind: string): void {
    this.#alerts.inc({ kind })
  }

  looked(openByStatus: ReadonlyMap<Status, number>, oldestAgeSeconds: number): void {
    for (const status of open) this.#open.set({ status }, openByStatus.get(status) ?? 0)
    this.#oldest.set(oldestAgeSeconds)
  }
}
