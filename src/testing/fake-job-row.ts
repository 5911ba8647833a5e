import { randomUUID } from 'node:crypto'
import { type Deferred, deferred } from '../db/deferred.ts'
import { newEventId } from '../db/event-ids.ts'
import type { Job } from '../db/jobs.ts'
import type { Json } from '../db/json.ts'
import type { FakeUnit, UnitState } from './fake-unit.ts'

/** A job, and what became of the transaction that it was enqueued in. */
export type FakeJob = Job & {
  state: UnitState
  /** the name of the distributed transaction, and its attempt; null without one */
  transaction: string | null
  attempt: string | null
}

/** A job as the real table has it, with what that keeps for itself. */
export type FakeJobRow = {
  readonly job: Job
  /** what it was enqueued in; undefined: a transaction of the caller's own */
  readonly unit: FakeUnit | undefined
  /** a savepoint was rolled back */
  readonly undone: Deferred<void>
  ended: Deferred<void>
  attemptsBefore: number
  deferrals: number
  /** the number of its run, and what tells that run to stop; undefined: nobody runs it, or whoever did has died */
  run: number
  revoke: AbortController | undefined
  /** for a delay or a pause to be over, which here comes with the test's call */
  waits: boolean
  /** the order of `runAt`, also within a millisecond */
  turn: number
}

let turns = 0

export function nextTurn(): number {
  return ++turns
}

/** Its run has died. */
export function isAbandoned({ job, revoke }: FakeJobRow): boolean {
  return (job.status === 'running' || job.status === 'cancelling') && revoke === undefined
}

/** As it is now. */
export function viewOf({ job }: FakeJobRow): Job {
  return { ...job, errors: [...job.errors] }
}

/** `values`: those of the statement that enqueues a job, in its order. */
export function newRow(values: readonly unknown[], unit: FakeUnit | undefined): FakeJobRow {
  const [name, input, delayMs, priority, deduplication, correlationId] = values
  const now = new Date()
  return {
    job: {
      id: `${String(name)}-${newEventId()}`,
      name: String(name),
      input: JSON.parse(String(input)) as Json,
      status: 'queued',
      priority: Number(priority),
      runAt: new Date(now.getTime() + Number(delayMs)),
      attempts: 0,
      errors: [],
      result: null,
      deduplication: deduplication as string | null,
      correlationId: (correlationId as string | null) ?? randomUUID(),
      schedule: null,
      scheduledFor: null,
      createdAt: now,
      startedAt: null,
      finishedAt: null,
    },
    unit,
    undone: deferred<void>(),
    ended: deferred<void>(),
    attemptsBefore: 0,
    deferrals: 0,
    run: 0,
    revoke: undefined,
    waits: Number(delayMs) > 0,
    turn: nextTurn(),
  }
}
