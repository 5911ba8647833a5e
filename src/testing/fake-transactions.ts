import type { DistributedTransaction } from '../db/distributed-transactions.ts'
import { NameInUseError, UnknownTransactionError } from '../db/errors.ts'
import { checkTransactionName } from '../db/transaction-name.ts'
import { type Event, moveFor } from '../jobs/transitions.ts'
import { isAborted, tellDecision } from './fake-unit.ts'

/** One attempt, as the row of the real table, and what a test may want to see besides. */
export type FakeTransaction = DistributedTransaction & {
  /** by awaited service; `vote` is null while it has not voted */
  votes: Record<string, { vote: 'ready' | 'abort' | null; reason: string | null }>
  /** whether a rollback is to be compensated once it was pending */
  compensates: boolean
  /** what the last try of the compensation threw; it is still due then, or after ten of them `failed` */
  compensationError: unknown
  /** its audit trail: every status that it had, votes, takeovers and compensations, in order */
  history: string[]
}

/** All attempts, in memory. Every step goes through the product's own table of transitions. */
export class FakeTransactions {
  readonly #rows: FakeTransaction[] = []

  get all(): readonly FakeTransaction[] {
    return this.#rows
  }

  /** Throws NameInUseError while an earlier attempt of the name is under way or committed. */
  insert(row: FakeTransaction): FakeTransaction {
    const previous = this.last(row.name)
    if (previous && !isAborted(previous)) {
      throw new NameInUseError(
        `${row.name} is in use: its last attempt is ${previous.status}. Finish it, or use another name`,
      )
    }
    this.#rows.push(row)
    return row
  }

  last(name: string): FakeTransaction | undefined {
    checkTransactionName(name)
    return this.#rows.findLast((row) => row.name === name)
  }

  /** Throws UnknownTransactionError when nothing of this name was begun. */
  get(name: string): FakeTransaction {
    const row = this.last(name)
    if (!row) throw new UnknownTransactionError(`no transaction named ${name} is recorded; begin it first`)
    return row
  }
}

/** One step of an attempt. False where it cannot happen at its status: then nothing changed. */
export function move(row: FakeTransaction, event: Event, fields: Partial<FakeTransaction> = {}): boolean {
  const { from, to } = moveFor(event)
  if (!from.includes(row.status)) return false
  // What was once pending may have had effects.
  if (to === 'rolling_back' && row.status === 'pending' && row.compensates) row.compensation = 'due'
  Object.assign(row, fields, { status: to, updatedAt: new Date() })
  row.history.push(to)
  tellDecision(row)
  return true
}
