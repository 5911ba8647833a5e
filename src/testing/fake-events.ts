import { type CloudEvent, extensionsOf } from '../db/cloud-event.ts'
import { type EventRunner, isSqlTag } from '../db/event-runner.ts'
import type { Json } from '../db/json.ts'
import { appendEvents, type NewEvent } from '../db/outbox.ts'
import type { Tx } from '../db/tx.ts'
import { type FakeUnit, stateOf, type UnitState } from './fake-unit.ts'
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

export type FakeEvent = Published & {
  /** what became of its transaction; `unknown` for one published in a transaction of the caller's own */
  state: UnitState
}

/** What was published. The product's own function checks and encodes it, and its statement is read here. */
export class FakeEvents {
  readonly #own: WeakSet<object>
  #all: readonly { event: Published; unit: FakeUnit | undefined }[] = []

  /** `own`: the handles whose statements are shown to `appendedBy`. */
  constructor(own: WeakSet<object>) {
    this.#own = own
  }

  get all(): FakeEvent[] {
    return this.#all.map(({ event, unit }) => ({ ...event, state: stateOf(unit) }))
  }

  async publish(runner: EventRunner, events: NewEvent | readonly NewEvent[]): Promise<string[]> {
    if (this.#own.has(runner)) return appendEvents(runner, events)
    const query = async (text: string, values: unknown[]) => {
      if (isSqlTag(runner, 'publish')) await (runner as Tx).unsafe(text, values as never[])
      else await runner.query(text, values)
      this.appendedBy({ text, values }, undefined)
    }
    return appendEvents({ query }, events)
  }

  /** Records the events if this is the statement that appends them; undefined for every other statement. */
  appendedBy({ text, values }: Statement, unit: FakeUnit | undefined): Published[] | undefined {
    if (!text.startsWith('select holdfast.append_events(')) return undefined
    const events = JSON.parse(String(values[0])) as CloudEvent[]
    const { name: transaction = null, attempt = null } = unit ?? {}
    const appended = events.map((event) => ({ ...toPublished(event), transaction, attempt }))
    this.#all = [...this.#all, ...appended.map((event) => ({ event, unit }))]
    return appended
  }

  remove(events: readonly Published[]): void {
    this.#all = this.#all.filter(({ event }) => !events.includes(event))
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
