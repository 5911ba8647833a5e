import { type EventRunner, isSqlTag } from '../db/event-runner.ts'
import { insertJobIn, type Job, type JobFilter, type NewJob, transactionOfJob } from '../db/jobs.ts'
import { SQLSTATE } from '../db/sqlstate.ts'
import type { Tx } from '../db/tx.ts'
import type { JobDefinition } from '../jobs/job-definition.ts'
import { type FakeJob, type FakeJobRow, isAbandoned, newRow, viewOf } from './fake-job-row.ts'
import { type FakeUnit, isAborted, newPlainUnit, stateOf, whenDecided } from './fake-unit.ts'
import type { Rows, Statement } from './statements.ts'

type Inserted = { readonly rows: Rows; readonly undo: () => void }

/** Users' jobs. The product's own functions check and write them, and their statement is read here. */
export class FakeJobs {
  readonly definitions: ReadonlyMap<string, JobDefinition>
  readonly #own: WeakSet<object>
  #rows: readonly FakeJobRow[] = []

  /** `own`: the handles whose statements are shown to `insertedBy`. */
  constructor(definitions: readonly JobDefinition[], own: WeakSet<object>) {
    this.definitions = new Map(definitions.map((definition) => [definition.name, definition]))
    this.#own = own
  }

  /** Every job that was enqueued, oldest first, whatever became of it. */
  get enqueued(): FakeJob[] {
    return this.#rows.map((row) => ({
      ...viewOf(row),
      state: stateOf(row.unit),
      transaction: row.unit?.name ?? null,
      attempt: row.unit?.attempt ?? null,
    }))
  }

  async insertIn(runner: EventRunner | undefined, job: NewJob): Promise<string> {
    if (runner !== undefined && this.#own.has(runner)) return insertJobIn(runner, job)
    const query = async (text: string, values: unknown[]) => {
      if (runner === undefined) return (await this.#insert(values, newPlainUnit('commit'))).rows
      if (isSqlTag(runner, 'enqueue')) await (runner as Tx).unsafe(text, values as never[])
      else await runner.query(text, values)
      return (await this.#insert(values, undefined)).rows
    }
    return insertJobIn({ query }, job)
  }

  /** Records the job if this is the statement that enqueues one; undefined for every other statement. */
  insertedBy(
    { text, values }: Statement,
    participant: string,
    unit: FakeUnit,
  ): Promise<Inserted> | undefined {
    if (!text.trimStart().startsWith('select holdfast.enqueue($1, $2::text::jsonb, $3')) return undefined
    if (participant === 'primary') return this.#insert(values, unit)
    const missing = new Error('function holdfast.enqueue does not exist: jobs are enqueued on `primary`')
    throw Object.assign(missing, { code: SQLSTATE.undefinedFunction })
  }

  /** What a look at the table would show: what was enqueued in a transaction is there once that has committed. */
  find(id: string): FakeJobRow | undefined {
    return this.#visible().find(({ job }) => job.id === id)
  }

  findByTransaction(name: string): FakeJobRow | undefined {
    return this.#visible().find(({ job }) => transactionOfJob(job.id) === name)
  }

  /** As of the table: whether somebody goes on with this transaction before long. */
  isResumed(transaction: string): boolean {
    const job = this.findByTransaction(transaction)?.job
    return (
      job?.status === 'running' || (job?.status === 'queued' && job.runAt.getTime() < Date.now() + 60_000)
    )
  }

  /** The newest first. */
  list({ name, status, limit = 100 }: JobFilter = {}): Job[] {
    return this.#visible()
      .filter(({ job }) => (name ?? job.name) === job.name && (status ?? job.status) === job.status)
      .toReversed()
      .slice(0, limit)
      .map(viewOf)
  }

  /** What a worker would take up now: what nobody lives for any more, then what is due, by priority and time. */
  due(): FakeJobRow[] {
    const rows = this.#visible().filter(({ job }) => this.definitions.has(job.name))
    const queued = rows.filter(({ job, waits }) => job.status === 'queued' && !waits)
    const order = ({ job: one, turn }: FakeJobRow, { job: other, turn: otherTurn }: FakeJobRow) =>
      one.priority - other.priority || turn - otherTurn
    return [...rows.filter(isAbandoned), ...queued.toSorted(order)]
  }

  /** The open job of this name and deduplication id, other than `but`. */
  findOpen(name: string, id: string | null, but?: FakeJobRow): FakeJobRow | undefined {
    if (id === null) return undefined
    return this.#rows.find(
      (row) =>
        row !== but &&
        row.job.name === name &&
        row.job.deduplication === id &&
        ['queued', 'running', 'cancelling'].includes(row.job.status) &&
        (row.unit === undefined || !isAborted(row.unit)),
    )
  }

  #visible(): FakeJobRow[] {
    return this.#rows.filter(({ unit }) => unit === undefined || unit.decision === 'commit')
  }

  /** As in PostgreSQL, whoever comes to an open job of a transaction that is not decided waits for that; without a limit. */
  async #insert(values: readonly unknown[], unit: FakeUnit | undefined): Promise<Inserted> {
    const row = newRow(values, unit)
    const { name, deduplication } = row.job
    for (let open = this.findOpen(name, deduplication); open; open = this.findOpen(name, deduplication)) {
      if (open.unit === undefined || open.unit === unit || open.unit.decision === 'commit')
        return { rows: [{ id: open.job.id }], undo: () => undefined }
      await Promise.race([whenDecided(open.unit), open.undone.promise])
    }
    this.#rows = [...this.#rows, row]
    return { rows: [{ id: row.job.id }], undo: () => this.#forget(row) }
  }

  #forget(row: FakeJobRow): void {
    this.#rows = this.#rows.filter((other) => other !== row)
    row.undone.resolve()
  }
}
