import { type CloudEvent, extensionsOf } from '../db/cloud-event.ts'
import { type EventRunner, isSqlTag } from '../db/event-runner.ts'
import type { Json } from '../db/json.ts'
import { appendEvents, type NewEvent } from '../db/outbox.ts'
import type { Tx } from '../db/tx.ts'
import type { Statement } from './statements.ts'

/** An event as the outbox would hold it. */
export type Published = {
  id: string
  source: string
  type: string
  subject?: string
  partitionkey?: string
  /** ISO 8601 */
  time: string
  data: Json
  headers: Record<string, unknown>
  /** the name of the distributed transaction, and its attempt; null for one published in a transaction of one's own */
  transaction: string | null
  attempt: string | null
}

/** What was published. The product's own function checks and encodes it, and its statement is read here. */
export class FakeEvents {
  all: readonly Published[] = []
  readonly #own = new WeakSet<object>()

  /** Marks a handle whose statements are shown to `appendedBy`. */
  own(tx: Tx): void {
    this.#own.add(tx)
  }

  async publish(runner: EventRunner, events: NewEvent | readonly NewEvent[]): Promise<string[]> {
    if (this.#own.has(runner)) return appendEvents(runner, events)
    const query = async (text: string, values: unknown[]) => {
      if (isSqlTag(runner, 'publish')) await (runner as Tx).unsafe(text, values as never[])
      else await runner.query(text, values)
      this.appendedBy({ text, values }, null, null)
    }
    return appendEvents({ query }, events)
  }

  /** Records the events if this is the statement that appends them; undefined for every other statement. */
  appendedBy(
    { text, values }: Statement,
    transaction: string | null,
    attempt: string | null,
  ): Published[] | undefined {
    if (!text.startsWith('select holdfast.append_events(')) return undefined
    const events = JSON.parse(String(values[0])) as CloudEvent[]
    const appended = events.map((event) => ({ ...toPublished(event), transaction, attempt }))
    this.all = [...this.all, ...appended]
    return appended
  }

  remove(events: readonly Published[]): void {
    this.all = this.all.filter((event) => !events.includes(event))
  }
}

function toPublished(event: CloudEvent): Omit<Published, 'transaction' | 'attempt'> {
  const { id, source, type, subject, partitionkey, time, data } = event
  return {
    id,
    source,
    type,
    ...(subject === undefined ? {} : { subject }),
    ...(partitionkey === undefined ? {} : { partitionkey }),
    time,
    data: data as Json,
    headers: extensionsOf(event),
  }
}
