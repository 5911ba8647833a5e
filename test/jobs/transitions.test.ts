import { describe, expect, it } from 'vitest'
import type { Status } from '../../src/db/distributed-transactions.ts'
import { type Event, moveFor, transitions } from '../../src/jobs/transitions.ts'

/** Written out a second time, in full, so that a slip in the table shows. */
const expected: Record<Status, Record<Event, Status | null>> = {
  started: {
    'all-prepared': 'pending',
    'decide-commit': null,
    'all-committed': null,
    'decide-abort': 'rolling_back',
    'all-fenced': null,
    'clean-up': null,
  },
  pending: {
    'all-prepared': null,
    'decide-commit': 'committing',
    'all-committed': null,
    'decide-abort': 'rolling_back',
    'all-fenced': null,
    'clean-up': null,
  },
  committing: {
    'all-prepared': null,
    'decide-commit': null,
    'all-committed': 'committed',
    'decide-abort': null,
    'all-fenced': null,
    'clean-up': null,
  },
  committed: {
    'all-prepared': null,
    'decide-commit': null,
    'all-committed': null,
    'decide-abort': null,
    'all-fenced': null,
    'clean-up': null,
  },
  rolling_back: {
    'all-prepared': null,
    'decide-commit': null,
    'all-committed': null,
    'decide-abort': null,
    'all-fenced': 'rolled_back',
    'clean-up': 'cleaned_up',
  },
  rolled_back: {
    'all-prepared': null,
    'decide-commit': null,
    'all-committed': null,
    'decide-abort': null,
    'all-fenced': null,
    'clean-up': null,
  },
  cleaned_up: {
    'all-prepared': null,
    'decide-commit': null,
    'all-committed': null,
    'decide-abort': null,
    'all-fenced': null,
    'clean-up': null,
  },
}

describe('transitions', () => {
  it('is this table', () => {
    expect(transitions).toEqual(expected)
  })

  it('decides commit from pending alone, and never turns back', () => {
    expect(moveFor('decide-commit')).toEqual({ from: ['pending'], to: 'committing' })
    expect(moveFor('decide-abort')).toEqual({ from: ['started', 'pending'], to: 'rolling_back' })
    for (const ended of ['committed', 'rolled_back', 'cleaned_up'] as const) {
      expect(Object.values(transitions[ended]).every((next) => next === null)).toBe(true)
    }
  })
})
