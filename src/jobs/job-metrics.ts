import { Gauge, Histogram, type Registry } from 'prom-client'
import type { OpenJobs } from '../db/jobs.ts'

/** How a run of a job ended; `retried`: it is to be run again. */
export type RunEnd = 'completed' | 'failed' | 'cancelled' | 'retried'

const openStatuses = ['queued', 'running', 'cancelling'] as const

/** Users' jobs as metrics, by definition: gauges as of the last look, and what the runs of this process took. */
export class JobMetrics {
  readonly #open: Gauge<'job' | 'status'>
  readonly #oldest: Gauge<'job'>
  readonly #waited: Histogram<'job'>
  readonly #took: Histogram<'job' | 'outcome'>

  constructor(registry: Registry) {
    const registers = [registry]
    this.#open = new Gauge({
      name: 'holdfast_jobs_open',
      help: 'Jobs that have not ended, by status, as of the last recovery round.',
      labelNames: ['job', 'status'],
      registers,
    })
    this.#oldest = new Gauge({
      name: 'holdfast_jobs_oldest_due_age_seconds',
      help: 'How long the job that is due for the longest waits for a run; 0 when none does.',
      labelNames: ['job'],
      registers,
    })
    this.#waited = new Histogram({
      name: 'holdfast_job_wait_seconds',
      help: 'From the time that a run was due to its begin.',
      labelNames: ['job'],
      buckets: [0.01, 0.05, 0.2, 1, 5, 30, 120, 600, 3_600],
      registers,
    })
    this.#took = new Histogram({
      name: 'holdfast_job_run_duration_seconds',
      help: 'From the begin of a run to its end, by outcome.',
      labelNames: ['job', 'outcome'],
      buckets: [0.02, 0.1, 0.5, 2, 10, 60, 600, 3_600],
      registers,
    })
  }

  /** Sets the gauges. A definition without open jobs has none. */
  observe(open: readonly OpenJobs[]): void {
    this.#open.reset()
    this.#oldest.reset()
    for (const { name: job, oldestDueSeconds, ...counts } of open) {
      for (const status of openStatuses) this.#open.set({ job, status }, counts[status])
      this.#oldest.set({ job }, oldestDueSeconds)
    }
  }

  waited(job: string, seconds: number): void {
    this.#waited.observe({ job }, seconds)
  }

  ran(job: string, outcome: RunEnd, seconds: number): void {
    this.#took.observe({ job, outcome }, seconds)
  }
}
