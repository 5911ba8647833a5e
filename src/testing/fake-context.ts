import { type Logger, pino } from 'pino'
import { newOwnerId } from '../db/transaction-name.ts'
import { jobOperation, operationOfJob } from '../jobs/job-operation.ts'
import type { KnownOperation } from '../jobs/operations.ts'
import { checkJobs } from './fake-checks.ts'
import { FakeEvents } from './fake-events.ts'
import type { FakeKey } from './fake-idempotent.ts'
import type { FakeOptions } from './fake-interface.ts'
import { viewOf } from './fake-job-row.ts'
import { FakeJobs } from './fake-jobs.ts'
import { FakeSeen } from './fake-seen.ts'
import { FakeTransactions } from './fake-transactions.ts'
import { Statements } from './statements.ts'

/** A run that is at its effects. */
export type FakeRun = { readonly limit: AbortController; die(error: Error): void }

/** All that a fake is made of. */
export type FakeContext = {
  readonly participants: readonly string[]
  /** undefined: any name will do */
  readonly services: readonly string[] | undefined
  /** the operations of the config and of its jobs */
  readonly declared: ReadonlyMap<string, KnownOperation>
  /** those and what runs brought along; a crash forgets the latter */
  readonly operations: Map<string, KnownOperation>
  readonly transactions: FakeTransactions
  readonly statements: Statements
  readonly events: FakeEvents
  readonly jobs: FakeJobs
  readonly seen: FakeSeen
  /** by scope and key */
  readonly keys: Map<string, FakeKey>
  /** the handles of this fake's transactions */
  readonly own: WeakSet<object>
  /** by attempt */
  readonly runs: Map<string, FakeRun>
  /** by attempt: the tokens of the services that vote */
  readonly tokens: Map<string, Readonly<Record<string, string>>>
  /** the id of this process, as in attempts */
  readonly owner: string
  readonly log: Logger
}

export function createFake({ services, jobs: definitions = [], ...options }: FakeOptions): FakeContext {
  const participants = [...new Set(['primary', ...(options.participants ?? [])])]
  checkJobs(participants, definitions)
  const own = new WeakSet<object>()
  const jobs = new FakeJobs(definitions, own)
  const rows = {
    find: async (id: string) => {
      const row = jobs.find(id)
      return row && viewOf(row)
    },
    isResumed: async (name: string) => jobs.isResumed(name),
  }
  const declared = new Map<string, KnownOperation>(Object.entries(options.operations ?? {}))
  for (const definition of definitions)
    declared.set(operationOfJob(definition.name), jobOperation(definition, rows))
  return {
    participants,
    services,
    declared,
    operations: new Map(declared),
    transactions: new FakeTransactions(),
    statements: new Statements(),
    events: new FakeEvents(own),
    jobs,
    seen: new FakeSeen(),
    keys: new Map(),
    own,
    runs: new Map(),
    tokens: new Map(),
    owner: newOwnerId(),
    log: pino({ level: 'silent' }),
  }
}
