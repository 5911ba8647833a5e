import {
  IdempotencyInFlightError,
  IdempotencyMismatchError,
  InvalidConfigError,
  NotPreparedError,
  ResponseTooLargeError,
} from '../db/errors.ts'
import { checkKeyPart, hashFingerprint, type KeyId } from '../db/idempotency-keys.ts'
import { encodeJson, type Json } from '../db/json.ts'
import type { Tx } from '../db/tx.ts'

/** An idempotent call before anything is asked: what it may be given, what its response may be, how it is refused. */
export type IdempotentOptions = {
  /** whose keys these are: a tenant and an operation, say. The same key in another scope is another key */
  readonly scope: string
  /** the caller's key for this one call; scope and key are texts of 1 to 255 characters */
  readonly key: string
  /** what the call is about: any JSON value. A hash of it is kept; another one under the same key is refused */
  readonly fingerprint?: Json
  /** how long the response is kept, to a hundredth, after the work has committed; milliseconds, default 24 hours */
  readonly ttlMs?: number
  /** how long to wait for a call that is under way elsewhere; milliseconds, default 0 */
  readonly wait?: number
  /** how long a claim lasts without renewal, milliseconds; default `timing.leaseMs` of the config */
  readonly leaseMs?: number
  /** how large the response may be as JSON text; bytes of UTF-8, default 1 MiB */
  readonly maxResponseBytes?: number
}

/** `signal` aborts when the claim is lost: whatever the work still does will not be committed. */
export type IdempotentWork<T extends Json> = (tx: Tx, context: { signal: AbortSignal }) => Promise<T> | T

/** `replayed`: the work was done by an earlier call. The response has gone through JSON either way. */
export type IdempotentResult<T extends Json> = { response: T; replayed: boolean }

const dayMs = 24 * 60 * 60 * 1000
const longestMs = 366 * dayMs

export type Call = Required<Omit<IdempotentOptions, 'fingerprint'>> & { fingerprint: Buffer }

/** Throws InvalidPayloadError and InvalidConfigError. */
export function checkCall(options: IdempotentOptions): Call {
  const { scope, key, fingerprint = null, ttlMs = dayMs, wait = 0, leaseMs = 15_000 } = options
  const { maxResponseBytes = 1024 * 1024 } = options
  checkKeyPart(scope, 'scope')
  checkKeyPart(key, 'key')
  const problems = Object.entries({ ttlMs, leaseMs, maxResponseBytes })
    .filter(([, value]) => !(value > 0 && value <= longestMs))
    .map(
      ([name]) =>
        `${name} of an idempotent call is not a positive number, a year of milliseconds at the most`,
    )
  if (!(wait >= 0 && wait <= longestMs))
    problems.push('wait of an idempotent call is not a number of milliseconds')
  if (problems.length > 0) throw new InvalidConfigError(problems)
  return { scope, key, fingerprint: hashFingerprint(fingerprint), ttlMs, wait, leaseMs, maxResponseBytes }
}

/** The text that is stored. Throws InvalidPayloadError and ResponseTooLargeError. */
export function encodeResponse(response: Json, { maxResponseBytes, ...call }: Call): string {
  const text = encodeJson(response, 'response')
  const bytes = Buffer.byteLength(text)
  if (bytes <= maxResponseBytes) return text
  throw new ResponseTooLargeError(
    `${named(call)}: the response has ${bytes} bytes as JSON, ${maxResponseBytes} may be stored; return less (an id, a link), or raise maxResponseBytes`,
  )
}

/** As long again as it has run, but not longer than its lease could keep it. */
export function inFlight(
  call: KeyId,
  { runningMs, leaseMs }: { runningMs: number; leaseMs: number },
): IdempotencyInFlightError {
  const retryAfterMs = Math.ceil(Math.max(100, Math.min(runningMs, leaseMs)))
  return new IdempotencyInFlightError(
    `${named(call)}: the call is under way elsewhere; try again in ${retryAfterMs} ms, or pass \`wait\``,
    { retryAfterMs },
  )
}

export function mismatch(id: KeyId): IdempotencyMismatchError {
  return new IdempotencyMismatchError(
    `${named(id)} was used for a call with another fingerprint; a new call needs a new key`,
  )
}

/** Of work that caught the error of a statement: its transaction could only be rolled back. */
export function wentOn(id: KeyId, cause: unknown): NotPreparedError {
  return new NotPreparedError(
    `the work of ${named(id)} went on after one of its statements had failed, so there is nothing to commit; let the error through, or wrap the statement in tx.savepoint`,
    { cause },
  )
}

/** Keys are the caller's own, and may be personal: only the scope is named. */
export function named({ scope }: Pick<KeyId, 'scope'>): string {
  return `the idempotency key in the scope ${JSON.stringify(scope)}`
}
