import { setTimeout as sleep } from 'node:timers/promises'
import { type Deferred, deferred } from '../db/deferred.ts'
import { InvalidConfigError } from '../db/errors.ts'
import type { KeyId } from '../db/idempotency-keys.ts'
import type { Json } from '../db/json.ts'
import {
  type Call,
  checkCall,
  encodeResponse,
  type IdempotentOptions,
  type IdempotentResult,
  type IdempotentWork,
  inFlight,
  mismatch,
  named,
  wentOn,
} from '../jobs/idempotent-call.ts'
import type { FakeContext } from './fake-context.ts'
import { openSession } from './fake-session.ts'
import { decide, newPlainUnit } from './fake-unit.ts'

/** What is kept of a key: the call that claimed it, and its response as JSON text once that has committed. */
export type FakeKey = {
  readonly call: Call
  readonly startedAt: number
  readonly ended: Deferred<void>
  response: string | undefined
}

/** Runs the work once for each key. A call waits by the clock, at most `wait`; nothing else passes by itself. */
export async function idempotent(
  fake: FakeContext,
  options: IdempotentOptions,
  work: IdempotentWork<Json>,
): Promise<IdempotentResult<Json>> {
  const call = checkCall(options)
  const until = performance.now() + call.wait
  for (;;) {
    const known = fake.keys.get(nameOf(call))
    if (!known) return run(fake, call, work)
    if (!known.call.fingerprint.equals(call.fingerprint)) throw mismatch(call)
    if (known.response !== undefined) return { response: JSON.parse(known.response) as Json, replayed: true }
    const now = performance.now()
    if (now >= until) throw inFlight(call, { runningMs: now - known.startedAt, leaseMs: known.call.leaseMs })
    await endedWithin(until - now, known)
  }
}

async function run(
  fake: FakeContext,
  call: Call,
  work: IdempotentWork<Json>,
): Promise<IdempotentResult<Json>> {
  const claimed: FakeKey = {
    call,
    startedAt: performance.now(),
    ended: deferred<void>(),
    response: undefined,
  }
  fake.keys.set(nameOf(call), claimed)
  const unit = newPlainUnit()
  const session = openSession(fake, unit, 'primary')
  try {
    const text = encodeResponse(await work(session.tx, { signal: new AbortController().signal }), call)
    const failure = session.failure()
    if (failure !== undefined) throw wentOn(call, failure)
    claimed.response = text
    decide(unit, 'commit')
    return { response: JSON.parse(text) as Json, replayed: false }
  } catch (error) {
    fake.keys.delete(nameOf(call))
    decide(unit, 'abort')
    throw error
  } finally {
    session.end()
    claimed.ended.resolve()
  }
}

/** The time of a response is over. */
export function expireKey(fake: FakeContext, id: KeyId): void {
  if (fake.keys.get(nameOf(id))?.response === undefined)
    throw new InvalidConfigError([`${named(id)} has no response that could expire`])
  fake.keys.delete(nameOf(id))
}

async function endedWithin(ms: number, { ended }: FakeKey): Promise<void> {
  const timer = new AbortController()
  const late = sleep(ms, undefined, { signal: timer.signal }).catch(() => undefined)
  await Promise.race([ended.promise, late])
  timer.abort()
}

function nameOf({ scope, key }: KeyId): string {
  return JSON.stringify([scope, key])
}
