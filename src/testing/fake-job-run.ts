import { type Job, transactionOfJob } from '../db/jobs.ts'
import type { Json } from '../db/json.ts'
import { messageOf } from '../db/message-of.ts'
import type { Tx } from '../db/tx.ts'
import { parseInput } from '../jobs/enqueue-job.ts'
import { unknownJob } from '../jobs/job-control.ts'
import type { JobDefinition } from '../jobs/job-definition.ts'
import { compensationOutstanding, operationOfJob } from '../jobs/job-operation.ts'
import {
  classify,
  classifyEffects,
  DiedTooOften,
  followUp,
  lookAgainMs,
  maxDeferrals,
} from '../jobs/retry.ts'
import type { RunResult } from '../jobs/run-distributed.ts'
import { stageJob } from '../jobs/stage-job.ts'
import { stagedTogether, stageTogether } from '../jobs/stage-together.ts'
import type { FakeContext } from './fake-context.ts'
import { compensate } from './fake-ending.ts'
import { endTransactionOf, stands } from './fake-job-control.ts'
import { type FakeJobRow, isAbandoned, viewOf } from './fake-job-row.ts'
import { claim, comeDue, complete, defer, fail, settleCancelled } from './fake-job-steps.ts'
import { runDistributed } from './fake-run.ts'

/** Delivers a job: what is queued runs, whatever it waits for, and what a run has died in goes on. */
export async function runJob(fake: FakeContext, jobId: string): Promise<Job> {
  const row = fake.jobs.find(jobId)
  if (!row) throw unknownJob(jobId)
  const definition = fake.jobs.definitions.get(row.job.name)
  if (definition && (row.job.status === 'queued' || isAbandoned(row))) {
    comeDue(row)
    await new FakeJobRun(fake, definition, row).run()
  }
  return viewOf(row)
}

/** Those that are due now, once each; what they enqueue is due for the next call. */
export async function runJobs(fake: FakeContext): Promise<Job[]> {
  const due = fake.jobs.due()
  for (const { job } of due) await runJob(fake, job.id)
  return due.map(viewOf)
}

/** One run, by the rules of the real one (src/jobs/run-job.ts), over the fake's own distributed transactions. */
class FakeJobRun {
  readonly #fake: FakeContext
  readonly #definition: JobDefinition
  readonly #row: FakeJobRow
  readonly #name: string
  readonly #run: number
  readonly #abandoned: boolean
  readonly #signal: AbortSignal
  /** as it was before this run */
  readonly #failed: number
  /** what the effects threw */
  #effectsFailed: { error: unknown } | undefined

  constructor(fake: FakeContext, definition: JobDefinition, row: FakeJobRow) {
    this.#fake = fake
    this.#definition = definition
    this.#row = row
    this.#name = transactionOfJob(row.job.id)
    this.#failed = row.job.attempts - row.attemptsBefore
    const { run, abandoned, signal } = claim(row)
    this.#run = run
    this.#abandoned = abandoned
    this.#signal = signal
  }

  async run(): Promise<void> {
    if (this.#row.job.status === 'cancelling') return this.#cancel()
    try {
      if (this.#abandoned && this.#row.deferrals > maxDeferrals) throw new DiedTooOften(this.#row.deferrals)
      const { result } = await this.#transaction()
      complete(this.#row, result as Json)
    } catch (error) {
      await this.#ended(error)
    }
  }

  async #transaction(): Promise<RunResult<unknown, unknown>> {
    const { participants = ['primary'], timeoutMs, name } = this.#definition
    const { correlationId } = this.#row.job
    const input = await parseInput(this.#definition, this.#row.job.input)
    return runDistributed(
      this.#fake,
      this.#name,
      {
        operation: operationOfJob(name),
        correlationId,
        signal: this.#signal,
        ...(timeoutMs === undefined ? {} : { deadlineMs: timeoutMs }),
        stage: stageTogether(participants, (txs) => this.#stage(input, txs)),
        effects: ({ attempt, staged, signal }) => this.#effects(input, attempt, staged, signal),
      },
      () => this.#settleCompensations(),
    )
  }

  #stage(input: unknown, txs: Readonly<Record<string, Tx>>): unknown {
    const context = { input, txs, jobId: this.#row.job.id, signal: this.#signal, log: this.#fake.log }
    return stageJob(this.#definition, context, (primary, events) =>
      this.#fake.events.publish(primary, events),
    )
  }

  async #effects(input: unknown, attempt: string, staged: unknown, signal: AbortSignal): Promise<unknown> {
    const { id: jobId, status } = this.#row.job
    if (status === 'cancelling') throw new Error('the job was cancelled')
    try {
      return await this.#definition.effects?.({
        input,
        staged: stagedTogether(staged),
        // What is never taken back must not be done under another key.
        idempotencyKey: this.#fake.transactions.get(this.#name).compensates ? attempt : this.#name,
        jobId,
        signal,
        log: this.#fake.log,
      })
    } catch (error) {
      this.#effectsFailed = { error }
      throw error
    }
  }

  /** An earlier attempt's compensation comes before the next attempt. */
  async #settleCompensations(): Promise<void> {
    const attempts = this.#fake.transactions.all.filter(({ name }) => name === this.#name)
    for (const row of attempts) await compensate(this.#fake, row)
    const left = attempts.find(({ compensation }) => compensation === 'due' || compensation === 'failed')
    if (left) throw compensationOutstanding(this.#name, left)
  }

  /** The run has ended with an error; the transaction says what that means. */
  async #ended(error: unknown): Promise<void> {
    const transaction = this.#fake.transactions.last(this.#name)
    if (transaction?.decision === 'commit') return complete(this.#row, transaction.result)
    // It has died, as the test wanted.
    if (!this.#isMine()) throw error
    if (this.#row.job.status === 'cancelling') return this.#cancel()
    const verdict = this.#effectsFailed?.error === error ? classifyEffects(error) : classify(error)
    const { deferrals } = this.#row
    const follow = followUp(verdict, this.#definition.retry, { deferrals, failed: this.#failed })
    if (follow.step === 'defer') return defer(this.#row, follow.waitMs, follow.counts)
    // First the decision, then the row: what has failed for good never commits.
    const reason = `the job failed: ${messageOf(error)}`
    if (follow.next === 'give-up' && !(await endTransactionOf(this.#fake, this.#row, reason)))
      return defer(this.#row, lookAgainMs, false)
    fail(this.#row, error, follow.next, stands(this.#fake, this.#row))
  }

  async #cancel(): Promise<void> {
    if (await endTransactionOf(this.#fake, this.#row, 'the job was cancelled'))
      settleCancelled(this.#row, stands(this.#fake, this.#row), this.#run)
    else complete(this.#row, this.#fake.transactions.get(this.#name).result)
  }

  #isMine(): boolean {
    return this.#row.revoke !== undefined && this.#row.run === this.#run
  }
}
