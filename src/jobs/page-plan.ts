import type { EpochKind } from '../db/outbox-cursors.ts'
import type { OutboxEvent } from '../db/outbox-event.ts'
import type { Parked, Rejected } from '../db/outbox-parked.ts'
import type { SinkPolicy } from './sinks/sink.ts'

/**
 * What a page does, decided before it is staged: what is sent, what is parked or stays parked, and how far the cursor goes.
 * A page that met a rejection is rolled back and planned again with it, so what is committed is what became of each event.
 */
export type Plan = {
  /** in order; without what an earlier attempt at this page saw taken */
  send: OutboxEvent[]
  /** of the outbox: what goes to the parked list */
  park: Parked[]
  /** of the parked list: what leaves it, by its parking number */
  unpark: string[]
  /** of the parked list: what was rejected once more */
  again: { no: string; rejected: Rejected }[]
  /** the page ends before this event, and the shard waits for it */
  blockedBy?: { event: OutboxEvent; reason: string }
  lastId: bigint
  /** the keys of which the page parks or keeps an event */
  held: Set<string>
}

/** What attempts at the same page have shown so far, by event. */
type Shown = {
  taken: ReadonlySet<string>
  rejected: ReadonlyMap<string, { reason: string; permanent: boolean }>
}

export type PageSpec = {
  kind: EpochKind
  events: readonly OutboxEvent[]
  /** of the page as it was read, whatever of it the sink wants */
  lastId: bigint
  /** keys of which an earlier event waits */
  held: ReadonlySet<string>
  shown: Shown
  policy: Required<SinkPolicy>
  /** the jitter: 0 to 1 */
  random: () => number
}

export function planPage(page: PageSpec): Plan {
  return page.kind === 'parked' ? planParked(page) : planEvents(page)
}

function planEvents({ events, lastId, held, shown, policy, random }: PageSpec): Plan {
  const plan: Plan = { send: [], park: [], unpark: [], again: [], lastId, held: new Set() }
  const waits = (key: string | null) => key !== null && (held.has(key) || plan.held.has(key))
  for (const event of events) {
    const rejection = shown.rejected.get(event.id)
    if (waits(event.partitionkey)) {
      plan.park.push({ event })
    } else if (rejection && policy.onReject === 'block') {
      plan.blockedBy = { event, reason: rejection.reason }
      plan.lastId = BigInt(event.id) - 1n
      return plan
    } else if (rejection) {
      const rejected = judge(event, rejection, policy, random)
      plan.park.push({ event, rejected })
      if (rejected.holdsKey && event.partitionkey !== null) plan.held.add(event.partitionkey)
    } else if (!shown.taken.has(event.id)) {
      plan.send.push(event)
    }
  }
  return plan
}

function planParked({ events, lastId, held, shown, policy, random }: PageSpec): Plan {
  const plan: Plan = { send: [], park: [], unpark: [], again: [], lastId, held: new Set() }
  for (const event of events) {
    const key = event.partitionkey
    if (key !== null && (held.has(key) || plan.held.has(key))) continue
    const rejection = shown.rejected.get(event.id)
    if (!rejection) {
      plan.unpark.push(event.id)
      if (!shown.taken.has(event.id)) plan.send.push(event)
      continue
    }
    const rejected = judge(event, rejection, policy, random)
    plan.again.push({ no: event.id, rejected })
    if (rejected.holdsKey && key !== null) plan.held.add(key)
  }
  return plan
}

const firstRetryMs = 1_000
const lastRetryMs = 60 * 60 * 1_000

/** When an event that was rejected is tried again, or that it is given up. */
function judge(
  event: OutboxEvent,
  { reason, permanent }: { reason: string; permanent: boolean },
  policy: Required<SinkPolicy>,
  random: () => number,
): Rejected {
  const attempts = (event.attempts ?? 0) + 1
  const skip = policy.onReject === 'skip'
  if (permanent || skip || attempts >= policy.maxAttempts) {
    return {
      reason,
      dead: true,
      holdsKey: event.partitionkey !== null && !skip && policy.afterDead === 'wait',
    }
  }
  const retryMs = Math.min(lastRetryMs, firstRetryMs * 2 ** (attempts - 1)) * (0.5 + random() / 2)
  return { reason, dead: false, retryMs, holdsKey: event.partitionkey !== null }
}
