import { describe, expect, it } from 'vitest'
import { type Facts, judge, type Verdict } from '../../src/jobs/verdict.ts'
import { exploreProtocol, type Options } from './protocol.ts'
import type { Guards } from './state.ts'

/** A large exploration takes seconds on a free machine; this is room for a busy one. */
const patienceMs = 240_000

const one: Options = { participants: 1, cast: ['worker', 'recoverer'], compensator: true }
const oneWithHeir: Options = { participants: 1, cast: ['worker', 'heir', 'recoverer'], compensator: true }
const two: Options = { participants: 2, cast: ['worker', 'recoverer'], coarse: true }
const twoByHand: Options = { ...two, hand: true }

describe('the protocol, in every interleaving', () => {
  const explorations: Record<string, { options: Options; atLeast: number }> = {
    'one participant, taken over by an heir, compensated': { options: oneWithHeir, atLeast: 100_000 },
    'one participant, recovered and cleaned, somebody at psql': {
      options: { participants: 1, cast: ['worker', 'recoverer', 'cleaner'], hand: true },
      atLeast: 100_000,
    },
    'two participants, compensated': {
      options: { participants: 2, cast: ['worker', 'recoverer'], compensator: true },
      atLeast: 40_000,
    },
    'two participants, two recoverers': {
      options: { participants: 2, cast: ['worker', 'recoverer', 'recoverer'], coarse: true },
      atLeast: 200_000,
    },
    'two participants, somebody at psql': {
      options: { participants: 2, cast: ['worker', 'recoverer'], hand: true },
      atLeast: 100_000,
    },
  }

  it.each(Object.entries(explorations))(
    'holds with %s',
    (_, { options, atLeast }) => {
      const { states, violation } = exploreProtocol(options)
      expect(violation).toBeUndefined()
      // A slip in the model that cuts off most of it would pass too easily.
      expect(states).toBeGreaterThan(atLeast)
    },
    patienceMs,
  )
})

describe('each guard is there for an interleaving', () => {
  const found: Record<
    Exclude<keyof Guards, 'decisionOnce' | 'everyRunEnds'>,
    { options: Options; breaks: string }
  > = {
    fence: { options: one, breaks: 'ended with something prepared' },
    recheckMarkers: { options: twoByHand, breaks: 'an abort was decided against a commit by hand' },
    decisionBeforeCommit: { options: one, breaks: 'a commit without the decision' },
    pendingBeforeEffects: { options: one, breaks: 'effects before the row was pending' },
    listTwice: { options: one, breaks: 'an intact attempt was aborted before its deadline' },
    casOnStatus: { options: one, breaks: 'an ended attempt was moved' },
    casOnJudged: { options: one, breaks: 'an intact attempt was aborted before its deadline' },
    casOnOwner: { options: oneWithHeir, breaks: 'a live run was aborted before its deadline' },
    stepsOfTheOwner: { options: oneWithHeir, breaks: 'a run moved what a live one had taken over' },
    askMarkerWhenAbsent: { options: twoByHand, breaks: 'ended otherwise than it says' },
    leaseBeforeTakeOver: {
      options: oneWithHeir,
      breaks: 'compensated while a live run may be in its effects',
    },
    ownerUntilRunEnds: { options: one, breaks: 'compensated while a live run may be in its effects' },
    endsOnlyItself: {
      options: oneWithHeir,
      breaks: 'compensated while a live run may be in its effects',
    },
    compensateAfterProof: { options: one, breaks: 'compensated before the rollback was proved' },
    compensateAfterRun: { options: one, breaks: 'compensated while a live run may be in its effects' },
    dueAgain: { options: one, breaks: 'stuck: effects that nobody compensates' },
    dueAgainByAnyRun: { options: one, breaks: 'stuck: effects that nobody compensates' },
    doneOnlyIfStillSame: { options: one, breaks: 'stuck: effects that nobody compensates' },
  }

  it.each(Object.entries(found))(
    'without %s something breaks',
    (guard, { options, breaks }) => {
      const { violation } = exploreProtocol({ ...options, without: [guard as keyof Guards] })
      expect(violation?.rule).toBe(breaks)
      expect(violation?.trace.length).toBeGreaterThan(0)
    },
    patienceMs,
  )

  it('splits when it commits before the decision, if nobody minds the order', () => {
    const { violation } = exploreProtocol({
      ...two,
      without: ['decisionBeforeCommit'],
      tolerate: ['a commit without the decision'],
    })
    expect(violation?.rule).toBe('one participant committed and another did not')
  })

  it(
    'leaves a compensation due only where a run may move what another took over, and does not end',
    () => {
      const breaks = (...without: (keyof Guards)[]) => {
        const tolerate = ['a run moved what a live one had taken over']
        return exploreProtocol({ ...oneWithHeir, without, tolerate }).violation?.rule
      }
      expect(breaks('everyRunEnds', 'stepsOfTheOwner')).toBe('stuck: a compensation is left due')
      expect(breaks('everyRunEnds')).toBeUndefined()
    },
    patienceMs,
  )

  it('reverses a decision only without the compare-and-set and without the constraints of the table', () => {
    const tolerate = ['an ended attempt was moved', 'effects before the row was pending']
    const breaks = (...without: (keyof Guards)[]) =>
      exploreProtocol({ ...one, without, tolerate }).violation?.rule
    expect(breaks('casOnStatus', 'decisionOnce')).toBe('a decision was reversed')
    expect(breaks('decisionOnce')).toBeUndefined()
  })
})

describe('a wrong verdict of recovery is found out', () => {
  const wrong: Record<string, { options: Options; judge: (facts: Facts) => Verdict; breaks: string }> = {
    'a live run is no reason to wait': {
      options: one,
      judge: (facts) => judge({ ...facts, running: false }),
      breaks: 'a live run was aborted before its deadline',
    },
    'a gid that comes or goes is taken for one that is gone': {
      options: one,
      judge: (facts) => judge(withGids(facts, (gid) => (gid === 'changing' ? 'absent' : gid))),
      breaks: 'an intact attempt was aborted before its deadline',
    },
    'an abandoned attempt is left alone': {
      options: one,
      judge: (facts) => (facts.status === 'started' ? { act: 'leave' } : judge(facts)),
      breaks: 'stuck: it is left started',
    },
    'the deadline is never reached': {
      options: one,
      judge: (facts) => judge({ ...facts, pastDeadline: false }),
      breaks: 'stuck: it is left pending',
    },
  }

  it.each(Object.entries(wrong))('%s', (_, { options, judge, breaks }) => {
    expect(exploreProtocol({ ...options, judge }).violation?.rule).toBe(breaks)
  })
})

type Gid = NonNullable<Facts['participants']>[number]['gid']

function withGids(facts: Facts, change: (gid: Gid) => Gid): Facts {
  const participants = facts.participants?.map((p) => ({ ...p, gid: change(p.gid) }))
  return { ...facts, participants }
}
