import type { ListFilter } from '../db/distributed-transactions.ts'
import { InvalidConfigError } from '../db/errors.ts'
import type { EventRunner } from '../db/event-runner.ts'
import { recordSeen } from '../db/inbox-seen.ts'
import type { NewEvent } from '../db/outbox.ts'
import { newOwnerId } from '../db/transaction-name.ts'
import type { Choice } from '../db/votes.ts'
import type { BeginOptions } from '../jobs/begin-options.ts'
import type { RunSpec } from '../jobs/run-distributed.ts'
import type { Work, WorkByParticipant } from '../jobs/stage-work.ts'
import type { VoteOptions } from '../jobs/vote.ts'
import { begin } from './fake-begin.ts'
import type { FakeContext } from './fake-context.ts'
import { commit, expire, rollback } from './fake-ending.ts'
import { FakeEvents } from './fake-events.ts'
import type { FakeEvent, FakeHoldfast, FakeOptions } from './fake-interface.ts'
import { list, outcomeOf } from './fake-list.ts'
import { crash, runDistributed } from './fake-run.ts'
import { FakeSeen } from './fake-seen.ts'
import { type FakeTransaction, FakeTransactions } from './fake-transactions.ts'
import { castVote } from './fake-votes.ts'
import { type Answer, type Statement, Statements } from './statements.ts'

/**
 * Distributed transactions without a database, for unit tests: names, attempts, statuses, errors, votes, deadlines and
 * compensation follow the rules of the real ones, and time passes only by `expire`. SQL is recorded and answered with what
 * the test registered, but not run: what PostgreSQL would say to it shows only in a sandboxDatabase.
 */
export function fakeHoldfast<const P extends string = 'primary'>(
  options: FakeOptions<P> = {},
): FakeHoldfast<P> {
  const fake: FakeContext = {
    participants: [...new Set(['primary', ...(options.participants ?? [])])],
    services: options.services,
    declared: options.operations ?? {},
    operations: new Map(Object.entries(options.operations ?? {})),
    transactions: new FakeTransactions(),
    statements: new Statements(),
    events: new FakeEvents(),
    seen: new FakeSeen(),
    runs: new Map(),
    tokens: new Map(),
    owner: newOwnerId(),
  }
  return new Instance(fake) as unknown as FakeHoldfast<P>
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

  get transactions(): FakeTransaction[] {
    return this.#fake.transactions.all.map((row) => ({
      ...row,
      votes: { ...row.votes },
      history: [...row.history],
    }))
  }

  get events(): FakeEvent[] {
    const states = new Map(this.#fake.transactions.all.map((row) => [row.attempt, stateOfEvents(row)]))
    return this.#fake.events.all.map((event) => ({
      ...event,
      state: states.get(event.attempt ?? '') ?? 'unknown',
    }))
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

  #check(participant: string): void {
    if (this.#fake.participants.includes(participant)) return
    throw new InvalidConfigError([`the fake has no database named ${JSON.stringify(participant)}`])
  }
}

function stateOfEvents({ decision }: FakeTransaction): FakeEvent['state'] {
  if (decision === null) return 'pending'
  return decision === 'commit' ? 'committed' : 'rolled_back'
}
