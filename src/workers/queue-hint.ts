import type { Logger } from 'pino'
import { within } from '../db/within.ts'
import type { QueuedJob, Queues } from './queues.ts'

/** How long a caller waits for the queue, when the row is there already. */
const patienceMs = 500

/**
 * Tells a queue at once what has been recorded. The workers assert from the rows what is to be queued, so a queue that does
 * not answer keeps nobody for long; and while it owes an answer that took too long, nothing more is sent to where it
 * would pile up.
 */
export class QueueHint {
  readonly #queues: Pick<Queues, 'add'>
  readonly #log: Logger
  /** by queue: answers that are overdue */
  readonly #owed = new Map<string, number>()

  constructor(queues: Pick<Queues, 'add'>, log: Logger) {
    this.#queues = queues
    this.#log = log
  }

  async tell(queue: string, job: QueuedJob): Promise<void> {
    if ((this.#owed.get(queue) ?? 0) > 0) return
    const added = this.#queues.add(queue, job)
    try {
      await within(patienceMs, `adding to the queue ${queue}`, added)
    } catch (error) {
      this.#log.warn({ err: error, jobId: job.id }, 'recorded, but not queued yet; a worker will')
      this.#count(queue, 1)
      const answered = () => this.#count(queue, -1)
      added.then(answered, answered)
    }
  }

  #count(queue: string, more: 1 | -1): void {
    this.#owed.set(queue, (this.#owed.get(queue) ?? 0) + more)
  }
}
