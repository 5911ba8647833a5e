import type { Operation } from '../jobs/operations.ts'
import type { FakeEvents } from './fake-events.ts'
import type { FakeSeen } from './fake-seen.ts'
import type { FakeTransactions } from './fake-transactions.ts'
import type { Statements } from './statements.ts'

/** A run that is at its effects. */
export type FakeRun = { readonly limit: AbortController; die(error: Error): void }

/** All that a fake is made of. */
export type FakeContext = {
  readonly participants: readonly string[]
  /** undefined: any name will do */
  readonly services: readonly string[] | undefined
  /** the operations of the config */
  readonly declared: Readonly<Record<string, Operation>>
  /** those and what runs brought along; a crash forgets the latter */
  readonly operations: Map<string, Operation>
  readonly transactions: FakeTransactions
  readonly statements: Statements
  readonly events: FakeEvents
  readonly seen: FakeSeen
  /** by attempt */
  readonly runs: Map<string, FakeRun>
  /** by attempt: the tokens of the services that vote */
  readonly tokens: Map<string, Readonly<Record<string, string>>>
  /** the id of this process, as in attempts */
  readonly owner: string
}
