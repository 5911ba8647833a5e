import { type Deferred, deferred } from '../db/deferred.ts'
import { type FakeTransaction, isAborted, whenDecided } from './fake-transactions.ts'
import type { Rows, Statement } from './statements.ts'

type Seen = {
  readonly transaction: FakeTransaction
  readonly participant: string
  readonly consumer: unknown
  readonly eventId: unknown
  /** a savepoint was rolled back */
  readonly undone: Deferred<void>
}

type Recorded = { readonly rows: Rows; readonly undo: () => void }

/** What consumers have seen, in each database. The product's own function checks it, and its statement is read here. */
export class FakeSeen {
  #all: readonly Seen[] = []

  /**
   * Answers the statement that records an event: with a row if it is new. As in PostgreSQL, whoever comes to a row of a
   * transaction that is not decided waits for that; but without a limit. Undefined for every other statement.
   */
  recordedBy(
    { text, values: [consumer, eventId] }: Statement,
    participant: string,
    transaction: FakeTransaction,
  ): Promise<Recorded> | undefined {
    if (!text.startsWith('insert into holdfast.inbox_seen (consumer, event_id) values ($1, $2) on conflict'))
      return undefined
    return this.#record({ transaction, participant, consumer, eventId, undone: deferred<void>() })
  }

  async #record(seen: Seen): Promise<Recorded> {
    for (let other = this.#find(seen); other; other = this.#find(seen)) {
      if (other.transaction === seen.transaction || other.transaction.decision === 'commit')
        return { rows: [], undo: () => undefined }
      await Promise.race([whenDecided(other.transaction), other.undone.promise])
    }
    this.#all = [...this.#all, seen]
    return { rows: [{ '?column?': 1 }], undo: () => this.#forget(seen) }
  }

  #find({ participant, consumer, eventId }: Seen): Seen | undefined {
    return this.#all.find(
      (seen) =>
        seen.participant === participant &&
        seen.consumer === consumer &&
        seen.eventId === eventId &&
        !isAborted(seen.transaction),
    )
  }

  #forget(seen: Seen): void {
    this.#all = this.#all.filter((other) => other !== seen)
    seen.undone.resolve()
  }
}
