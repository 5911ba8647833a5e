import { describe, expect, it } from 'vitest'
import { deferred } from '../../src/db/deferred.ts'
import { InvalidConfigError } from '../../src/db/errors.ts'
import type { ThrottleSignals } from '../../src/db/throttle-signals.ts'
import { checkThrottleLimits, judge, Throttle, type ThrottleLimits } from '../../src/jobs/throttle.ts'
import { FakeClock, settle } from '../support/fake-clock.ts'

const signal = new AbortController().signal
const quiet: ThrottleSignals = {
  replicaLagMs: { value: 0 },
  replicaBehindBytes: { value: 0 },
  lockWaits: { value: 0 },
  xminAge: { value: 0 },
  vacuumed: { tables: [] },
  walBacklogBytes: { value: 0 },
}
const hidden = { value: undefined, unknown: 'not to be seen' }

describe('the limits', () => {
  it.each<[string, ThrottleLimits, Partial<ThrottleSignals>, string | undefined]>([
    ['nothing', { replicaLagMs: 10_000 }, {}, undefined],
    ['at the limit', { replicaLagMs: 10_000 }, { replicaLagMs: { value: 10_000 } }, undefined],
    ['lag', { replicaLagMs: 10_000 }, { replicaLagMs: { value: 12_345 } }, 'replica lag 12.3 s, limit 10 s'],
    [
      'whose lag',
      { replicaLagMs: 500 },
      { replicaLagMs: { value: 1_000, detail: 'standby b' } },
      'replica lag 1 s (standby b), limit 0.5 s',
    ],
    ['no lock waits allowed', { lockWaits: 0 }, { lockWaits: { value: 1 } }, 'lock waits 1, limit 0'],
    ['none there', { lockWaits: 0 }, {}, undefined],
    [
      'an old xmin',
      { xminAge: 1_000_000 },
      { xminAge: { value: 2_500_000, detail: 'session 7' } },
      'oldest xmin age 2,500,000 transactions (session 7), limit 1,000,000 transactions',
    ],
    [
      'a WAL backlog',
      { walBacklogBytes: 64 * 2 ** 20 },
      { walBacklogBytes: { value: 100.25 * 2 ** 20, detail: 'archiver' } },
      'WAL backlog 100.3 MiB (archiver), limit 64 MiB',
    ],
    ['vacuum', { autovacuum: true }, { vacuumed: { tables: ['a', 'b'] } }, 'vacuum works on a, b'],
    [
      'vacuum, not asked for',
      { autovacuum: false, lockWaits: 1 },
      { vacuumed: { tables: ['a'] } },
      undefined,
    ],
    ['a signal without a limit', { lockWaits: 1 }, { replicaLagMs: { value: 1e9 } }, undefined],
    [
      'the worst of what is known, above the limit',
      { replicaLagMs: 10_000 },
      { replicaLagMs: { value: 20_000, unknown: 'a standby is silent' } },
      'replica lag 20 s, limit 10 s',
    ],
    ['unknown', { replicaLagMs: 1, lockWaits: 1 }, { replicaLagMs: hidden }, undefined],
    [
      'several',
      { replicaLagMs: 1_000, lockWaits: 2, autovacuum: true },
      { replicaLagMs: { value: 2_000 }, lockWaits: { value: 3 }, vacuumed: { tables: ['a'] } },
      'replica lag 2 s, limit 1 s; lock waits 3, limit 2; vacuum works on a',
    ],
  ])('%s', (_what, limits, signals, hold) => {
    const { reasons } = judge(limits, { ...quiet, ...signals }, new Set())
    expect(reasons.length > 0 ? reasons.join('; ') : undefined).toBe(hold)
  })

  it('name what is unknown, of signals that have a limit alone', () => {
    const signals = {
      ...quiet,
      replicaLagMs: hidden,
      xminAge: hidden,
      vacuumed: { tables: [], unknown: 'there is no table a' },
    }
    const { unknown } = judge({ replicaLagMs: 1, autovacuum: true }, signals, new Set())
    expect(unknown).toEqual(['replica lag: not to be seen', 'vacuum: there is no table a'])
  })

  it.each<[string, ThrottleLimits, (number | undefined)[], string]>([
    // Read after read: + holds, - does not.
    ['between', { replicaLagMs: 100 }, [90, 101, 100, 90, 81, 80, 90, 100, 101], '-++++---+'],
    ['the least', { replicaLagMs: 100, release: 0.1 }, [101, 50, 11, 10, 50], '+++--'],
    ['no gap', { replicaLagMs: 100, release: 1 }, [101, 100, 101, 100], '+-+-'],
    ['unknown', { replicaLagMs: 100 }, [undefined, 101, undefined, 90, undefined, 10, undefined], '-++++--'],
  ])('hold until it is down to the release: %s', (_what, limits, values, expected) => {
    let holding: ReturnType<typeof judge>['holding'] = new Set()
    let held = ''
    for (const value of values) {
      const reading = value === undefined ? hidden : { value }
      const judged = judge(limits, { ...quiet, replicaLagMs: reading }, holding)
      holding = judged.holding
      held += judged.reasons.length > 0 ? '+' : '-'
    }
    expect(held).toBe(expected)
  })

  it('hold on while a part of it is unknown, and say why', () => {
    const held = new Set(['replicaLagMs'] as const)
    const reason = (reading: ThrottleSignals['replicaLagMs']) =>
      judge({ replicaLagMs: 10_000 }, { ...quiet, replicaLagMs: reading }, held).reasons[0]
    expect(reason({ value: 9_000 })).toBe('replica lag 9 s, limit 10 s, goes on at 8 s')
    expect(reason({ value: 1_000, unknown: 'silent' })).toBe(
      'replica lag 1 s, limit 10 s, but not all of it is known',
    )
    expect(reason(hidden)).toBe('replica lag not known any more, limit 10 s')
    expect(reason({ value: 1_000 })).toBeUndefined()
  })

  it('are held for one signal apart from another', () => {
    const held = new Set(['replicaLagMs'] as const)
    const { reasons } = judge(
      { lockWaits: 10, replicaLagMs: 10 },
      { ...quiet, lockWaits: { value: 9 } },
      held,
    )
    expect(reasons).toEqual([])
  })
})

describe('checking the limits', () => {
  it('lists all that is wrong', () => {
    const wrong = {
      replicaLagMs: 0,
      lockWaits: 1.5,
      xminAge: -1,
      walBacklogBytes: Number.NaN,
      release: 1.1,
      everyMs: '5',
      autovacuum: 'yes',
      hook: 'hook',
    } as unknown as ThrottleLimits
    const problems = Object.keys(wrong).map((name) => expect.stringMatching(`^throttle\\.${name} must be `))
    expect(() => checkThrottleLimits(wrong)).toThrow(
      expect.objectContaining({ code: 'HOLDFAST_INVALID_CONFIG', problems }),
    )
  })

  it.each<[string, ThrottleLimits]>([
    ['nothing', {}],
    ['no vacuum', { autovacuum: false }],
    ['an interval alone', { everyMs: 5, release: 0.5 }],
  ])('refuses what limits nothing: %s', (_what, limits) => {
    expect(() => checkThrottleLimits(limits)).toThrow('no limit and no hook')
    expect(
      () => new Throttle({ limits, clock: new FakeClock(), read: () => Promise.resolve(quiet) }),
    ).toThrow(InvalidConfigError)
  })

  it.each<[string, ThrottleLimits]>([
    ['a limit', { lockWaits: 0 }],
    ['a hook', { hook: () => Promise.resolve(undefined) }],
    ['vacuum', { autovacuum: true, release: 1 }],
  ])('takes %s', (_what, limits) => {
    expect(() => checkThrottleLimits(limits)).not.toThrow()
  })
})

/** A throttle whose reader answers what `next` says: a lag, an error, or a promise of either. */
function throttleOf(limits: ThrottleLimits = {}) {
  const clock = new FakeClock()
  const state = { next: 0 as number | Error | Promise<number>, reads: 0 }
  const read = async () => {
    state.reads++
    const lag = await state.next
    if (lag instanceof Error) throw lag
    return { ...quiet, replicaLagMs: { value: lag } }
  }
  const throttle = new Throttle({ limits: { replicaLagMs: 100, ...limits }, clock, read, answerMs: 500 })
  /** The verdict after this answer, when it is time for a read. */
  const after = async (next: number | Error) => {
    await clock.advance(1_000)
    state.next = next
    return throttle.check(signal)
  }
  return { clock, state, throttle, after }
}
const busy = new Error('too many clients')
const failed = 'the throttle signals could not be read: too many clients'

describe('a throttle', () => {
  it('reads at most every so often, and answers the last verdict meanwhile', async () => {
    const { clock, state, throttle } = throttleOf({ everyMs: 200 })
    state.next = 101
    const holding = { hold: 'replica lag 0.1 s, limit 0.1 s', unknown: [] }
    expect(await throttle.check(signal)).toEqual(holding)
    state.next = 0
    await clock.advance(199)
    expect(await throttle.check(signal)).toEqual(holding)
    expect(state.reads).toBe(1)
    await clock.advance(1)
    expect(await throttle.check(signal)).toEqual({ hold: undefined, unknown: [] })
    expect(state.reads).toBe(2)
  })

  it('remembers what it holds for', async () => {
    const { after } = throttleOf()
    const held: boolean[] = []
    for (const lag of [90, 101, 90, 80, 90]) held.push((await after(lag)).hold !== undefined)
    expect(held).toEqual([false, true, true, false, false])
  })

  it('answers several that ask at once with one read', async () => {
    const { state, throttle } = throttleOf()
    const answer = deferred<number>()
    state.next = answer.promise
    const asked = [throttle.check(signal), throttle.check(signal), throttle.check(signal)]
    answer.resolve(101)
    for (const { hold } of await Promise.all(asked)) expect(hold).toBeDefined()
    expect(state.reads).toBe(1)
  })

  it('counts a read that failed for several once', async () => {
    const { state, throttle } = throttleOf()
    state.next = busy
    const asked = await Promise.all([1, 2, 3, 4, 5].map(() => throttle.check(signal)))
    expect(asked).toEqual(asked.map(() => ({ hold: undefined, unknown: [failed] })))
  })

  it.each([
    ['going on', 0, undefined],
    ['holding', 101, 'replica lag 0.1 s, limit 0.1 s'],
  ])(
    'whose reader fails keeps the verdict, %s, and says so; then holds, and goes on when it reads again',
    async (_what, lag, hold) => {
      const { after } = throttleOf()
      expect(await after(lag)).toEqual({ hold, unknown: [] })
      for (let i = 0; i < 3; i++) expect(await after(busy)).toEqual({ hold, unknown: [failed] })
      const both = hold === undefined ? failed : `${hold}; ${failed}`
      expect(await after(busy)).toEqual({ hold: both, unknown: [failed] })
      expect(await after(busy)).toEqual({ hold: both, unknown: [failed] })
      expect(await after(0)).toEqual({ hold: undefined, unknown: [] })
      expect(await after(busy)).toEqual({ hold: undefined, unknown: [failed] })
    },
  )

  it('whose reader never worked goes on as long, and holds then', async () => {
    const { after } = throttleOf()
    const held: boolean[] = []
    for (let i = 0; i < 5; i++) held.push((await after(busy)).hold !== undefined)
    expect(held).toEqual([false, false, false, true, true])
  })

  it('takes a late reader for one that failed, and asks it no second time before it has answered', async () => {
    const { clock, state, throttle } = throttleOf()
    const answer = deferred<number>()
    state.next = answer.promise
    for (let i = 0; i < 2; i++) {
      await clock.advance(1_000)
      const asked = throttle.check(signal)
      await settle()
      await clock.advance(500)
      expect(await asked).toEqual({
        hold: undefined,
        unknown: ['the throttle signals could not be read: no answer within 500 ms'],
      })
    }
    expect(state.reads).toBe(1)
    answer.resolve(101)
    await settle()
    state.next = 0
    await clock.advance(1_000)
    expect(await throttle.check(signal)).toEqual({ hold: undefined, unknown: [] })
    expect(state.reads).toBe(2)
    expect(clock.waits).toEqual([])
  })

  it('asks the hook too, and shows its reason beside the others', async () => {
    let reason: string | undefined
    const { after } = throttleOf({ hook: () => Promise.resolve(reason) })
    expect((await after(0)).hold).toBeUndefined()
    reason = 'the shop has a sale'
    expect((await after(0)).hold).toBe('the shop has a sale')
    expect((await after(101)).hold).toBe('replica lag 0.1 s, limit 0.1 s; the shop has a sale')
    reason = undefined
    expect((await after(0)).hold).toBeUndefined()
  })

  it('with a hook alone reads no signals', async () => {
    const clock = new FakeClock()
    const throttle = new Throttle({
      limits: { hook: () => Promise.resolve('no') },
      clock,
      read: () => Promise.reject(busy),
    })
    expect(await throttle.check(signal)).toEqual({ hold: 'no', unknown: [] })
  })

  it('counts a hook that fails apart, and judges the signals all the same', async () => {
    const { after } = throttleOf({ hook: () => Promise.reject(new Error('no network')) })
    const unknown = ['the throttle hook could not be read: no network']
    for (const hold of [undefined, undefined, undefined, unknown[0]])
      expect(await after(0)).toEqual({ hold, unknown })
    expect((await after(101)).hold).toMatch(/^replica lag .*; the throttle hook could not be read/)
  })

  it('takes a hook that throws at once for one that fails', async () => {
    const { after } = throttleOf({
      hook: () => {
        throw new Error('a bug')
      },
    })
    expect(await after(0)).toEqual({
      hold: undefined,
      unknown: ['the throttle hook could not be read: a bug'],
    })
  })

  it('tells the hook when nobody waits for it any more', async () => {
    const aborted: string[] = []
    const { clock, throttle } = throttleOf({
      hook: async (own) => {
        own.addEventListener('abort', () => aborted.push('hook'))
        await new Promise(() => undefined)
        return undefined
      },
    })
    const asked = throttle.check(signal)
    await settle()
    await clock.advance(499)
    expect(aborted).toEqual([])
    await clock.advance(1)
    await asked
    expect(aborted).toEqual(['hook'])
  })

  it('answers at once with the last verdict when the signal aborts, which is no failure and no read', async () => {
    const { clock, state, throttle, after } = throttleOf()
    const before = await after(101)
    const stop = new AbortController()
    const answer = deferred<number>()
    state.next = answer.promise
    await clock.advance(1_000)
    const asked = throttle.check(stop.signal)
    await settle()
    stop.abort()
    expect(await asked).toEqual(before)
    expect(await throttle.check(AbortSignal.abort())).toEqual(before)
    expect(state.reads).toBe(2)
    expect(clock.waits).toEqual([])
    answer.resolve(0)
    await settle()
    state.next = 0
    expect(await throttle.check(signal)).toEqual({ hold: undefined, unknown: [] })
    expect(state.reads).toBe(3)
  })
})
