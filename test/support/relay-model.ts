import { FencedError, SinkUnavailableError } from '../../src/db/errors.ts'
import type { OutboxEvent } from '../../src/db/outbox-event.ts'
import type { OpenSink, Page, Published } from '../../src/jobs/sinks/sink.ts'
import { eventOf, pageOf, signal } from './redis-stream.ts'

/** An event of the model: its number, by which it is known in the stream, and its key. */
type Item = { n: number; key: string | null }
type Placed = Item & { id: number }

export type PublishStep = {
  cut: number
  /** after the first attempt, before the commit, or not */
  crash: 'at-once' | 'before-commit' | 'never'
  redrive: boolean
  firstId: number
}

export type OnReject = 'park' | 'block' | 'skip'

/**
 * A relay without a database: epochs with fixed lists, pages cut anyhow, attempts with rising xids, a parked list. It may
 * crash after any attempt, which forgets what the sink answered, and lose its place to a restored database.
 */
export class RelayModel {
  readonly #sink: OpenSink
  readonly #onReject: OnReject
  #generation = 1
  #epoch = 0
  #xid = 100
  #position = 0
  #list: Placed[] = []
  #kind: 'events' | 'parked' = 'events'
  #backlog: Item[] = []
  #parked: Item[] = []
  #appended = 0
  readonly #sent: Page[] = []
  /** the highest attempt that the sink answered, and its answer */
  #told: { page: Page; answer: Published } | undefined
  readonly dead = new Set<number>()

  constructor(sink: OpenSink, onReject: OnReject) {
    this.#sink = sink
    this.#onReject = onReject
  }

  get events(): number {
    return this.#appended
  }

  get idle(): boolean {
    return this.#rest().length + this.#backlog.length + this.#parked.length === 0
  }

  append(keys: readonly (string | null)[]): void {
    for (const key of keys) this.#backlog.push({ n: ++this.#appended, key })
  }

  /**
   * One page, of `cut` events at most. `onRejected` happens between
   * two attempts at the page. An epoch that begins counts from `firstId`.
   */
  async publish(
    { cut, crash, redrive, firstId }: PublishStep,
    onRejected?: () => Promise<void>,
  ): Promise<void> {
    if (this.#rest().length === 0) this.#nextEpoch(redrive, firstId)
    const items = this.#rest().slice(0, cut)
    const taken = new Set<number>()
    const rejected = new Set<number>()
    while (items.length > 0) {
      const plan = this.#plan(items, taken, rejected)
      if (plan.lastId === this.#position) return
      const answer = plan.send.length === 0 ? { rejected: [] } : await this.#attempt(plan.send)
      if (!answer || crash === 'at-once') return
      if (answer.rejected.length === 0) {
        if (crash === 'never') this.#commit(plan)
        return
      }
      await onRejected?.()
      const refused = new Set(answer.rejected.map(({ event }) => event.id))
      const closed = new Set<string | null>()
      for (const item of plan.send) {
        if (!refused.has(String(item.id))) taken.add(item.id)
        else if (item.key === null || !closed.has(item.key)) rejected.add(item.id)
        if (refused.has(String(item.id)) && item.key !== null) closed.add(item.key)
      }
    }
  }

  /** An attempt of before arrives once more, or only now. */
  async arrivesLate(which: number): Promise<void> {
    const page = this.#sent[this.#sent.length - 1 - (which % Math.max(1, this.#sent.length))]
    const told = this.#told
    if (!page || !told || told.page.generation < this.#generation) return
    const answer = await this.#deliver(page)
    const void_ =
      page.generation < told.page.generation ||
      (page.generation === told.page.generation && page.xid < told.page.xid)
    if (void_ && answer !== 'fenced') throw new Error(`the sink took a page of the past: ${page.xid}`)
    if (page === told.page && answer !== 'unavailable' && !sameAnswer(answer, told.answer))
      throw new Error('the same call had another answer')
    if (!void_ && typeof answer === 'object') this.#told = { page, answer }
  }

  /** The database was restored: a new generation begins with what is not committed as published. */
  restore(): void {
    this.#backlog = [...(this.#kind === 'events' ? this.#rest() : []), ...this.#backlog]
    this.#list = []
    this.#generation++
    this.#epoch = 0
    this.#xid = 10
  }

  /** What is not committed as published: it may be in the stream already, and comes again after a restore. */
  get uncommitted(): number[] {
    return [...this.#rest(), ...this.#backlog, ...this.#parked].map(({ n }) => n)
  }

  #rest(): Placed[] {
    return this.#list.filter(({ id }) => id > this.#position)
  }

  #nextEpoch(redrive: boolean, firstId: number): void {
    this.#kind = this.#parked.length > 0 && (redrive || this.#backlog.length === 0) ? 'parked' : 'events'
    const items = this.#kind === 'parked' ? this.#parked : this.#backlog
    if (items.length === 0) return
    this.#list = items.map((item, i) => ({ ...item, id: firstId + 3 * i }))
    if (this.#kind === 'events') this.#backlog = []
    this.#epoch++
    this.#position = 0
  }

  #plan(items: readonly Placed[], taken: ReadonlySet<number>, rejected: ReadonlySet<number>): Plan {
    const plan: Plan = { send: [], park: [], dead: [], lastId: items.at(-1)?.id ?? 0, items }
    const held = new Set(this.#kind === 'events' ? this.#parked.map(({ key }) => key) : this.#kept)
    for (const item of items) {
      if (item.key !== null && held.has(item.key)) plan.park.push(item)
      else if (!rejected.has(item.id)) {
        if (!taken.has(item.id)) plan.send.push(item)
      } else if (this.#onReject === 'skip') plan.dead.push(item)
      else if (this.#onReject === 'block' && this.#kind === 'events') {
        return { ...plan, lastId: item.id - 1, items: items.filter(({ id }) => id < item.id) }
      } else {
        plan.park.push(item)
        if (item.key !== null) held.add(item.key)
      }
    }
    return plan
  }

  /** Keys of which this redrive has left an event parked. */
  get #kept(): (string | null)[] {
    const still = new Set(this.#parked.map(({ n }) => n))
    return this.#list.filter(({ id, n }) => id <= this.#position && still.has(n)).map(({ key }) => key)
  }

  #commit({ park, dead, items, lastId }: Plan): void {
    for (const { n } of dead) this.dead.add(n)
    if (this.#kind === 'events') this.#parked.push(...park.map(({ n, key }) => ({ n, key })))
    else {
      const gone = new Set(items.filter((item) => !park.includes(item)).map(({ n }) => n))
      this.#parked = this.#parked.filter(({ n }) => !gone.has(n))
    }
    this.#position = Math.max(this.#position, lastId)
  }

  async #attempt(send: readonly Placed[]): Promise<Published | undefined> {
    const page = pageOf({
      generation: this.#generation,
      epoch: BigInt(this.#epoch),
      position: BigInt(this.#position),
      xid: BigInt(++this.#xid),
      events: send.map(({ n, key, id }): OutboxEvent => eventOf(n, key, id)),
    })
    this.#sent.push(page)
    const answer = await this.#deliver(page)
    if (answer === 'fenced') throw new Error(`the sink took the newest attempt for a zombie: ${page.xid}`)
    if (answer === 'unavailable') return undefined
    this.#told = { page, answer }
    return answer
  }

  async #deliver(page: Page): Promise<Published | 'fenced' | 'unavailable'> {
    try {
      return await this.#sink.publish(page, signal)
    } catch (error) {
      if (error instanceof FencedError) return 'fenced'
      if (error instanceof SinkUnavailableError) return 'unavailable'
      throw error
    }
  }
}

type Plan = {
  send: Placed[]
  park: Placed[]
  dead: Placed[]
  lastId: number
  items: readonly Placed[]
}

function sameAnswer(one: Published | 'fenced', other: Published): boolean {
  const outline = ({ rejected }: Published) => rejected.map(({ event, reason }) => [event.id, reason])
  return one !== 'fenced' && JSON.stringify(outline(one)) === JSON.stringify(outline(other))
}
