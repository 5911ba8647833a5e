import type { Status } from '../db/distributed-transactions.ts'

/** What can happen to an attempt. */
export type Event =
  | 'all-prepared'
  | 'decide-commit'
  | 'all-committed'
  | 'decide-abort'
  | 'all-fenced'
  | 'clean-up'

/**
 * The life of an attempt, total: for each status and event the next status, or null where the event cannot happen.
 * Commit is decided only from `pending`, when every participant has prepared; no decision is ever reversed.
 */
export const transitions: Readonly<Record<Status, Readonly<Record<Event, Status | null>>>> = {
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
  committed: none(),
  rolling_back: {
    'all-prepared': null,
    'decide-commit': null,
    'all-committed': null,
    'decide-abort': null,
    'all-fenced': 'rolled_back',
    'clean-up': 'cleaned_up',
  },
  rolled_back: none(),
  cleaned_up: none(),
}

/** Whether nothing comes after it: every participant is at its end then. */
export function isEnd(status: Status): boolean {
  return Object.values(transitions[status]).every((next) => next === null)
}

/** The statuses from which an event leads on, and where to; the input of a compare-and-set. */
export function moveFor(event: Event): { from: Status[]; to: Status } {
  const statuses = Object.keys(transitions) as Status[]
  const from = statuses.filter((status) => transitions[status][event] !== null)
  const to = from.map((status) => transitions[status][event]).find((next) => next !== null)
  if (!to) throw new Error(`no status knows the event ${event}`)
  return { from, to }
}

function none(): Record<Event, null> {
  return {
    'all-prepared': null,
    'decide-commit': null,
    'all-committed': null,
    'decide-abort': null,
    'all-fenced': null,
    'clean-up': null,
  }
}
