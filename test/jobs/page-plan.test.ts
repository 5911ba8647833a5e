import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import type { OutboxEvent } from '../../src/db/outbox-event.ts'
import { type PageSpec, type Plan, planPage } from '../../src/jobs/page-plan.ts'
import type { SinkPolicy } from '../../src/jobs/sinks/sink.ts'
import { numbered } from '../support/outbox-page.ts'

type Fate = 'takes' | 'rejects' | 'rejects for good'
type Kind = 'events' | 'parked'
type Policy = Required<SinkPolicy>

const policies: fc.Arbitrary<Policy> = fc.record({
  onReject: fc.constantFrom('park' as const, 'block' as const, 'skip' as const),
  maxAttempts: fc.integer({ min: 1, max: 4 }),
  afterDead: fc.constantFrom('wait' as const, 'flow' as const),
})

/** A page, and what the sink would say of each of its events. */
const pages = fc
  .record({
    kind: fc.constantFrom<Kind>('events', 'parked'),
    policy: policies,
    held: fc.subarray(['a', 'b', 'c']),
    random: fc.double({ min: 0, max: 1, noNaN: true }),
    events: fc.array(
      fc.record({
        key: fc.constantFrom('a', 'b', 'c', null),
        gap: fc.integer({ min: 1, max: 5 }),
        attempts: fc.integer({ min: 0, max: 3 }),
        fate: fc.constantFrom<Fate>('takes', 'takes', 'takes', 'rejects', 'rejects for good'),
      }),
      { minLength: 1, maxLength: 14 },
    ),
  })
  .map(({ kind, policy, held, random, events: made }) => {
    let id = 0
    const fates = new Map<string, Fate>()
    const events = made.map(({ key, gap, attempts, fate }) => {
      id += gap
      fates.set(String(id), fate)
      // What has had all its attempts is dead, and in no list.
      const had = Math.min(attempts, policy.maxAttempts - 1)
      return numbered(id, { partitionkey: key, ...(kind === 'parked' ? { attempts: had } : {}) })
    })
    return { kind, policy, held: new Set(held), random, events, fates, lastId: BigInt(id + 3) }
  })

type Case = typeof pages extends fc.Arbitrary<infer T> ? T : never

/** Plans a page as often as the relay does: until the sink takes all that is sent. */
function play(page: Case): { plans: { plan: Plan; spec: PageSpec }[]; delivered: OutboxEvent[] } {
  const shown = {
    taken: new Set<string>(),
    rejected: new Map<string, { reason: string; permanent: boolean }>(),
  }
  const plans: { plan: Plan; spec: PageSpec }[] = []
  const delivered: OutboxEvent[] = []
  for (;;) {
    const { kind, events, lastId, held, policy } = page
    const spec = {
      kind,
      events,
      lastId,
      held,
      policy,
      random: () => page.random,
      shown: { taken: new Set(shown.taken), rejected: new Map(shown.rejected) },
    }
    const plan = planPage(spec)
    plans.push({ plan, spec })
    const closed = new Set<string>()
    for (const event of plan.send) {
      const fate = page.fates.get(event.id)
      const key = event.partitionkey
      if (key !== null && closed.has(key)) continue
      if (fate === 'takes') {
        delivered.push(event)
        shown.taken.add(event.id)
      } else {
        if (key !== null) closed.add(key)
        shown.rejected.set(event.id, { reason: 'no', permanent: fate === 'rejects for good' })
      }
    }
    if (plan.send.every(({ id }) => shown.taken.has(id))) return { plans, delivered }
    expect(plans.length).toBeLessThanOrEqual(page.events.length + 1)
  }
}

const idsOf = (events: readonly OutboxEvent[]) => events.map(({ id }) => id)
const isOrdered = (ids: readonly string[]) =>
  ids.every((id, i) => i === 0 || BigInt(ids[i - 1] ?? 0) < BigInt(id))

/** What a plan makes of each event. */
function fatesIn(plan: Plan, { kind, events, shown, held }: PageSpec): Record<string, string[]> {
  const sent = new Set(idsOf(plan.send))
  const parked = new Set(plan.park.map(({ event }) => event.id))
  const again = new Set(plan.again.map(({ no }) => no))
  const unparked = new Set(plan.unpark)
  return Object.fromEntries(
    events.map((event) => {
      const { id, partitionkey: key } = event
      const became: string[] = []
      if (sent.has(id)) became.push('sent')
      if (parked.has(id)) became.push('parked')
      if (again.has(id)) became.push('rejected again')
      if (plan.blockedBy && BigInt(id) > plan.lastId) became.push('cut off')
      else if (kind === 'events' && became.length === 0 && shown.taken.has(id)) became.push('taken')
      else if (kind === 'parked' && unparked.has(id) && !sent.has(id)) became.push('taken')
      else if (kind === 'parked' && became.length === 0 && !unparked.has(id) && key !== null) {
        if (held.has(key) || plan.held.has(key)) became.push('kept')
      }
      return [id, became]
    }),
  )
}

function forAll(property: (page: Case, played: ReturnType<typeof play>) => void): () => void {
  return () =>
    fc.assert(
      fc.property(pages, (page) => property(page, play(page))),
      { numRuns: 1_000 },
    )
}

describe('of each page', () => {
  it(
    'every event is one of sent, taken, parked, kept and cut off, and only one',
    forAll((_page, { plans }) => {
      for (const { plan, spec } of plans) {
        for (const [id, became] of Object.entries(fatesIn(plan, spec))) {
          expect(became, `event ${id}`).toHaveLength(1)
        }
      }
    }),
  )

  it(
    'of the parked list exactly what is sent or was taken leaves it, of the outbox nothing',
    forAll((page, { plans }) => {
      for (const { plan, spec } of plans) {
        if (page.kind === 'events') {
          expect(plan.unpark).toEqual([])
          expect(plan.again).toEqual([])
        } else {
          expect(plan.park).toEqual([])
          expect(plan.blockedBy).toBeUndefined()
          const gone = new Set([...idsOf(plan.send), ...spec.shown.taken])
          expect(plan.unpark.every((id) => gone.has(id))).toBe(true)
          expect(idsOf(plan.send).every((id) => plan.unpark.includes(id))).toBe(true)
        }
      }
    }),
  )

  it(
    'all lists keep the order',
    forAll((_page, { plans }) => {
      for (const { plan } of plans) {
        const lists = [idsOf(plan.send), idsOf(plan.park.map(({ event }) => event)), plan.unpark]
        for (const list of [...lists, plan.again.map(({ no }) => no)]) expect(isOrdered(list)).toBe(true)
      }
    }),
  )

  it(
    'nothing of a key that is held is sent, and all of it is behind in the parked list',
    forAll((page, { plans }) => {
      for (const { plan } of plans) {
        for (const { id, partitionkey: key } of page.events) {
          if (key === null || !page.held.has(key)) continue
          expect(idsOf(plan.send)).not.toContain(id)
          expect(plan.unpark).not.toContain(id)
          const cut = plan.blockedBy !== undefined && BigInt(id) > plan.lastId
          if (page.kind === 'events' && !cut) expect(idsOf(plan.park.map(({ event }) => event))).toContain(id)
        }
      }
    }),
  )

  it(
    'nothing of a key is sent behind one that was rejected and holds it',
    forAll((page, { plans }) => {
      for (const { plan } of plans) {
        const holding = [
          ...plan.park.map((one) => ({ id: one.event.id, ...one })),
          ...plan.again.map((one) => ({ id: one.no, ...one })),
        ]
        for (const { id, rejected } of holding) {
          if (rejected?.holdsKey !== true) continue
          const key = page.events.find((event) => event.id === id)?.partitionkey ?? null
          expect(key).not.toBeNull()
          expect(plan.held).toContain(key)
          const later = plan.send.filter(
            (event) => event.partitionkey === key && BigInt(event.id) > BigInt(id),
          )
          expect(later).toEqual([])
        }
      }
    }),
  )

  it(
    'nothing that was taken is sent again, and what is delivered of a key comes in its order',
    forAll((_page, { delivered }) => {
      expect(new Set(idsOf(delivered)).size).toBe(delivered.length)
      for (const key of ['a', 'b', 'c']) {
        expect(isOrdered(idsOf(delivered.filter((event) => event.partitionkey === key)))).toBe(true)
      }
    }),
  )

  it(
    'without block the cursor passes the page, with it all before the event that blocks',
    forAll((page, { plans }) => {
      const { plan } = plans.at(-1)!
      if (!plan.blockedBy) {
        expect(plan.lastId).toBe(page.lastId)
        return
      }
      expect(page.policy.onReject).toBe('block')
      const { event } = plan.blockedBy
      expect(page.fates.get(event.id)).not.toBe('takes')
      expect(plan.lastId).toBe(BigInt(event.id) - 1n)
      for (const { id } of [...plan.send, ...plan.park.map((one) => one.event)]) {
        expect(BigInt(id)).toBeLessThan(BigInt(event.id))
      }
    }),
  )
})

describe('of each rejection', () => {
  const rejections = ({ plan, spec }: { plan: Plan; spec: PageSpec }) => [
    ...plan.park.flatMap(({ event, rejected }) => (rejected ? [{ event, rejected }] : [])),
    ...plan.again.map(({ no, rejected }) => ({ event: spec.events.find(({ id }) => id === no)!, rejected })),
  ]

  it(
    'skip, and dead with afterDead flow, never hold a key',
    forAll(({ policy }, { plans }) => {
      for (const one of plans) {
        for (const { event, rejected } of rejections(one)) {
          const flows = policy.onReject === 'skip' || (rejected.dead && policy.afterDead === 'flow')
          expect(rejected.holdsKey).toBe(!flows && event.partitionkey !== null)
        }
      }
    }),
  )

  it(
    'is dead with its last attempt, when it is permanent or skipped, and not before',
    forAll((page, { plans }) => {
      const { maxAttempts, onReject } = page.policy
      for (const one of plans) {
        for (const { event, rejected } of rejections(one)) {
          const attempts = (event.attempts ?? 0) + 1
          const permanent = page.fates.get(event.id) === 'rejects for good'
          expect(rejected.dead).toBe(attempts === maxAttempts || permanent || onReject === 'skip')
        }
      }
    }),
  )

  it(
    'is tried again after twice as long each time, with jitter, and not when it is dead',
    forAll((_page, { plans }) => {
      for (const one of plans) {
        for (const { event, rejected } of rejections(one)) {
          if (rejected.dead) expect(rejected.retryMs).toBeUndefined()
          else {
            const most = 1_000 * 2 ** (event.attempts ?? 0)
            expect(rejected.retryMs).toBeGreaterThanOrEqual(most / 2)
            expect(rejected.retryMs).toBeLessThanOrEqual(most)
          }
        }
      }
    }),
  )

  it('waits an hour at most', () => {
    const event = numbered(1, { attempts: 40 })
    const plan = planPage({
      kind: 'parked',
      events: [event],
      lastId: 1n,
      held: new Set(),
      shown: { taken: new Set(), rejected: new Map([['1', { reason: 'no', permanent: false }]]) },
      policy: { onReject: 'park', maxAttempts: 1_000, afterDead: 'wait' },
      random: () => 1,
    })
    expect(plan.again[0]?.rejected.retryMs).toBe(60 * 60 * 1_000)
  })
})
