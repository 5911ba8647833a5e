import { type Deferred, deferred } from '../db/deferred.ts'
import { type FakeUnit, isAborted, whenDecided } from './fake-unit.ts'
import type { Rows, Statement } from './statements.ts'

type Seen = {
  readonly unit: FakeUnit
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
    unit: FakeUnit,
  ): Promise<Recorded> | undefined {
    if (!text.startsWith('insert into holdfast.inbox_seen (consumer, event_id) values ($1, $2) on conflict'))
      return undefined
    return this.#record({ unit, participant, consumer, eventId, undone: deferred<void>() })
  }

  async #record(seen: Seen): Promise<Recorded> {
    for (let other = this.#find(seen); other; other = this.#find(seen)) {
      if (other.unit === seen.unit || other.unit.decision === 'commit')
        return { rows: [], undo: () => undefined }
      await Promise.race([whenDecided(other.unit), other.undone.promise])
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
        !isAborted(seen.unit),
    )
  }

  #forget(seen: Seen): void {
    this.#all = this.#all.filter((other) => other !== seen)
    seen.undone.resolve()
  }
}
