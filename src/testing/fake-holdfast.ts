import type { ListFilter } from '../db/distributed-transactions.ts'
import { InvalidConfigError } from '../db/errors.ts'
import type { EventRunner } from '../db/event-runner.ts'
import type { KeyId } from '../db/idempotency-keys.ts'
import { recordSeen } from '../db/inbox-seen.ts'
import type { JobFilter } from '../db/jobs.ts'
import type { Json } from '../db/json.ts'
import type { NewEvent } from '../db/outbox.ts'
import type { Choice } from '../db/votes.ts'
import type { BeginOptions } from '../jobs/begin-options.ts'
import type { Enqueued, EnqueueOptions } from '../jobs/enqueue-job.ts'
import type { IdempotentOptions, IdempotentWork } from '../jobs/idempotent-call.ts'
import type { JobWaitOptions } from '../jobs/job-control.ts'
import type { JobDefinition } from '../jobs/job-definition.ts'
import type { RunSpec } from '../jobs/run-distributed.ts'
import type { Work, WorkByParticipant } from '../jobs/stage-work.ts'
import type { VoteOptions } from '../jobs/vote.ts'
import { begin } from './fake-begin.ts'
import { createFake, type FakeContext } from './fake-context.ts'
import { commit, expire, rollback } from './fake-ending.ts'
import type { FakeEvent } from './fake-events.ts'
import { expireKey, idempotent } from './fake-idempotent.ts'
import type { FakeHoldfast, FakeOptions } from './fake-interface.ts'
import { cancelJob, enqueue, retryJob, waitForJob } from './fake-job-control.ts'
import { type FakeJob, viewOf } from './fake-job-row.ts'
import { runJob, runJobs } from './fake-job-run.ts'
import { list, outcomeOf } from './fake-list.ts'
import { crash, runDistributed } from './fake-run.ts'
import type { FakeTransaction } from './fake-transactions.ts'
import { castVote } from './fake-votes.ts'
import type { Answer, Statement } from './statements.ts'

/**
 * Distributed transactions, jobs and idempotency keys without a database, for unit tests: names, attempts, statuses, errors,
 * votes, deadlines and compensation follow the rules of the real ones, and time passes only by `expire` and `runJob`. SQL is recorded and answered with what
 * the test registered, but not run: what PostgreSQL would say to it shows only in a sandboxDatabase.
 */
export function fakeHoldfast<
  const P extends string = 'primary',
  const J extends readonly JobDefinition[] = readonly JobDefinition[],
>(options: FakeOptions<P, J> = {}): FakeHoldfast<P, J> {
  return new Instance(createFake(options)) as unknown as FakeHoldfast<P, J>
}

class Instance {
  readonly #fake: FakeContext

  constructor(fake: FakeContext) {
    this.#fake = fake
  }

  beginDistributed(name: string, work: Work<unknown> | WorkByParticipant, options?: BeginOptions) {
    return begin(this.#fake, name, work, options)
  }

  async commitDistributed(name: string) {
    return commit(this.#fake, name)
  }

  async rollbackDistributed(name: string, reason = 'rolled back by the caller') {
    return rollback(this.#fake, name, reason)
  }

  runDistributed(name: string, spec: RunSpec<unknown, unknown>) {
    return runDistributed(this.#fake, name, spec)
  }

  async outcome(name: string) {
    return outcomeOf(this.#fake.transactions.last(name), this.#fake.participants)
  }

  vote(name: string, service: string, vote: Choice, options?: VoteOptions) {
    return castVote(this.#fake, name, service, vote, options)
  }

  async listDistributed(filter?: ListFilter) {
    return list(this.transactions, filter)
  }

  publish(tx: EventRunner, events: NewEvent | readonly NewEvent[]) {
    return this.#fake.events.publish(tx, events)
  }

  /** In a transaction of the caller's own, that one's answer counts. */
  once(tx: EventRunner, consumer: string, eventId: string) {
    return recordSeen(tx, consumer, eventId)
  }

  idempotent(options: IdempotentOptions, work: IdempotentWork<Json>) {
    return idempotent(this.#fake, options, work)
  }

  enqueue(job: string | { readonly name: string }, input: unknown, options?: EnqueueOptions) {
    return enqueue(this.#fake, job, input, options)
  }

  get jobs() {
    const fake = this.#fake
    return {
      get: async (jobId: string) => {
        const row = fake.jobs.find(jobId)
        return row && viewOf(row)
      },
      list: async (filter?: JobFilter) => fake.jobs.list(filter),
      retry: (jobId: string) => retryJob(fake, jobId),
      cancel: (jobId: string) => cancelJob(fake, jobId),
      wait: (job: string | Enqueued, options?: JobWaitOptions) => waitForJob(fake, job, options),
    }
  }

  runJob(jobId: string) {
    return runJob(this.#fake, jobId)
  }

  runJobs() {
    return runJobs(this.#fake)
  }

  get transactions(): FakeTransaction[] {
    return this.#fake.transactions.all.map((row) => ({
      ...row,
      votes: { ...row.votes },
      history: [...row.history],
    }))
  }

  get events(): FakeEvent[] {
    return this.#fake.events.all
  }

  get enqueued(): FakeJob[] {
    return this.#fake.jobs.enqueued
  }

  statements(participant = 'primary', transaction?: string): Statement[] {
    this.#check(participant)
    return this.#fake.statements.of(participant, transaction)
  }

  answer(pattern: RegExp | string, answer: Answer, participant?: string): void {
    if (participant !== undefined) this.#check(participant)
    this.#fake.statements.register(pattern, answer, participant)
  }

  expire(name: string): Promise<void> {
    return expire(this.#fake, name)
  }

  crash(name: string): void {
    crash(this.#fake, name)
  }

  expireKey(id: KeyId): void {
    expireKey(this.#fake, id)
  }

  #check(participant: string): void {
    if (this.#fake.participants.includes(participant)) return
    throw new InvalidConfigError([`the fake has no database named ${JSON.stringify(participant)}`])
  }
}
