import { UnrecoverableError } from 'bullmq'
import {
  CompensationOutstandingError,
  EscapedWorkError,
  FencedError,
  InvalidConfigError,
  InvalidNameError,
  InvalidPayloadError,
  isForLater,
  NameInUseError,
  NoConnectionsError,
  NoSlotsError,
  NotAllowedError,
  NotPreparedError,
  TwoPhaseDisabledError,
  UnknownParticipantError,
} from '../db/errors.ts'
import { isPassing, sqlstateOf } from '../db/sqlstate.ts'
import type { RetryOptions } from './job-definition.ts'

/** Thrown by a job that wants to be run again after so many milliseconds. What it staged is rolled back; no attempt is charged. */
export class RetryLater extends Error {
  readonly ms: number

  constructor(ms: number, message = `asked to be run again in ${ms} ms`, options?: ErrorOptions) {
    super(message, options)
    this.name = 'RetryLater'
    if (!(ms >= 0) || !Number.isFinite(ms))
      throw new InvalidConfigError([`RetryLater takes milliseconds, 0 or more, not ${ms}`])
    this.ms = ms
  }
}

/**
 * - `later`: the job asked for it.
 * - `elsewhere`: another run has it, or its transaction.
 * - `waiting`: it has not begun: no slot or connection was free, or an earlier attempt is not compensated yet. It charges
 *   nothing, however often.
 * - `passing`: not the job's own: contention, a lost connection. It charges no attempt, so many times in a row.
 * - `permanent`: it would fail in the same way again.
 * - `failed`: an attempt.
 */
export type Verdict =
  | { kind: 'later'; ms: number }
  | { kind: 'elsewhere' | 'waiting' | 'passing' | 'permanent' | 'failed' }

/** Its run ended so often without an end of its own that it is taken for the job's fault. */
export class DiedTooOften extends Error {
  constructor(times: number) {
    super(`its worker died ${times} times in a row while it ran`)
  }
}

const permanentErrors = [
  DiedTooOften,
  InvalidConfigError,
  InvalidNameError,
  InvalidPayloadError,
  NotAllowedError,
  NotPreparedError,
  TwoPhaseDisabledError,
  UnknownParticipantError,
]

/** What effects threw is the job's own, also where it is a lost connection: that was to somebody else. */
export function classifyEffects(error: unknown): Verdict {
  const verdict = classify(error)
  return verdict.kind === 'later' || verdict.kind === 'permanent' ? verdict : { kind: 'failed' }
}

/** Of the SQLSTATEs only the listed ones are tried again (src/db/sqlstate.ts). */
export function classify(error: unknown): Verdict {
  if (error instanceof RetryLater) return { kind: 'later', ms: error.ms }
  // By its name: the application may have another copy of the package.
  if (error instanceof UnrecoverableError || (error instanceof Error && error.name === 'UnrecoverableError'))
    return { kind: 'permanent' }
  if (error instanceof FencedError || error instanceof NameInUseError) return { kind: 'elsewhere' }
  if (error instanceof NoSlotsError || error instanceof NoConnectionsError) return { kind: 'waiting' }
  if (error instanceof CompensationOutstandingError) return { kind: error.givenUp ? 'permanent' : 'waiting' }
  if (isForLater(error)) return { kind: 'passing' }
  if (!(error instanceof EscapedWorkError) && isPassing(error)) return { kind: 'passing' }
  if (permanentErrors.some((type) => error instanceof type)) return { kind: 'permanent' }
  return { kind: sqlstateOf(error) === undefined ? 'failed' : 'permanent' }
}

const defaults = { attempts: 5, backoffMs: 1_000, maxBackoffMs: 300_000 } satisfies Required<RetryOptions>

function attemptsOf(retry: RetryOptions | undefined): number {
  return retry?.attempts ?? defaults.attempts
}

/** The pause after so many failures in a row: doubled each time, and with jitter, so that what failed together comes apart. */
function backoff(retry: RetryOptions | undefined, failures: number, random = Math.random()): number {
  const { backoffMs, maxBackoffMs } = { ...defaults, ...retry }
  const whole = Math.min(maxBackoffMs, backoffMs * 2 ** Math.max(0, Math.min(failures - 1, 40)))
  return whole * (0.5 + random / 2)
}

/** How often in a row a job may end for reasons that are not its own before it counts; a run that died included. */
export const maxDeferrals = 20
/** The pause where another run goes on, or a decided commit is not finished everywhere. */
export const lookAgainMs = 1_000
/** The longest pause of what waits. It counts up to half the deferrals, for the length of the pause: deaths have the others. */
const longestWaitMs = 30_000

/**
 * - `defer`: it is run again and no attempt is charged; `counts`: as one of so many in a row.
 * - `fail`: an attempt is charged, and another one follows or none.
 */
export type FollowUp =
  | { step: 'defer'; waitMs: number; counts: boolean }
  | { step: 'fail'; next: { waitMs: number } | 'give-up' }

/** What follows a run that ended with an error. `failed`: the attempts that had failed before it. */
export function followUp(
  verdict: Verdict,
  retry: RetryOptions | undefined,
  { deferrals, failed }: { deferrals: number; failed: number },
): FollowUp {
  if (verdict.kind === 'later') return { step: 'defer', waitMs: verdict.ms, counts: false }
  if (verdict.kind === 'elsewhere') return { step: 'defer', waitMs: lookAgainMs, counts: false }
  if (verdict.kind === 'waiting') {
    const waitMs = Math.min(longestWaitMs, backoff(retry, deferrals + 1))
    return { step: 'defer', waitMs, counts: deferrals < maxDeferrals / 2 }
  }
  if (verdict.kind === 'passing' && deferrals < maxDeferrals)
    return { step: 'defer', waitMs: backoff(retry, deferrals + 1), counts: true }
  const failures = failed + 1
  const giveUp = verdict.kind === 'permanent' || failures >= attemptsOf(retry)
  return { step: 'fail', next: giveUp ? 'give-up' : { waitMs: backoff(retry, failures) } }
}
