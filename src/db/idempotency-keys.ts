import { createHash } from 'node:crypto'
import type { Participant } from './databases.ts'
import { InvalidPayloadError } from './errors.ts'
import { canonicalJson, type Json, throughJson } from './json.ts'
import type { Tx } from './tx.ts'

/** Table idempotency_keys, on the coordinator. What keeps a key's work from being done twice: src/jobs/idempotent.ts. */
export type KeyId = { scope: string; key: string }

/** A claim that was granted. The token grows with every claim of the key; a number of 64 bits, as text. */
export type Claim = KeyId & { token: string; fingerprint: Buffer }

export type ClaimAnswer =
  | { state: 'claimed'; token: string }
  | { state: 'completed'; response: Json }
  | { state: 'mismatch' }
  /** how long it has run, and how much of its lease is left */
  | { state: 'in_flight'; runningMs: number; leaseMs: number }
  /** the row is being changed by somebody at this moment */
  | { state: 'busy' }

/** Claims a key that is absent, expired, or whose owner let its lease run out; or says what is with it. */
export async function claimKey(
  { sql }: Participant,
  { scope, key }: KeyId,
  fingerprint: Buffer,
  { leaseMs, ttlMs }: { leaseMs: number; ttlMs: number },
): Promise<ClaimAnswer> {
  const [row] = await sql<ClaimAnswer[]>`
    select state, token, response, running_ms as "runningMs", lease_ms as "leaseMs"
    from holdfast.claim_idempotency_key(${scope}, ${key}, ${fingerprint},
      make_interval(secs => ${leaseMs / 1000}), make_interval(secs => ${ttlMs / 1000}))`
  return row ?? { state: 'busy' }
}

/** What the transaction of the work is begun with. */
export function claimSetting({ token }: Claim): string {
  return `SET LOCAL holdfast.claim = '${BigInt(token)}'`
}

/**
 * The queries that end the work's transaction, before its COMMIT. Raises HF001 when the claim was taken over or released,
 * HF002 when this is not the transaction that was begun with the claim. Whoever the work made itself, the login completes.
 */
export function completeKey(tx: Tx, claim: Claim, response: string, ttlMs: number): PromiseLike<unknown>[] {
  const { scope, key, token, fingerprint } = claim
  return [
    tx.unsafe('RESET SESSION AUTHORIZATION; SET LOCAL synchronous_commit = on'),
    tx`select holdfast.complete_idempotency_key(${scope}, ${key}, ${token}, ${fingerprint}, ${response},
      make_interval(secs => ${ttlMs / 1000}))`,
  ]
}

/** False: the claim is no longer held, or its work is done. */
export async function renewClaim({ sql }: Participant, claim: Claim, leaseMs: number): Promise<boolean> {
  const { count } = await sql`
    update holdfast.idempotency_keys set lease_until = clock_timestamp() + make_interval(secs => ${leaseMs / 1000})
    where scope = ${claim.scope} and key = ${claim.key} and token = ${claim.token} and response is null`
  return count > 0
}

export type Ended =
  /** its transaction has not committed and cannot any more */
  | { state: 'released' }
  | { state: 'completed'; response: Json }
  /** somebody else has the key, or nobody */
  | { state: 'lost' }
  /** its transaction is completing it at this moment */
  | { state: 'busy' }

/**
 * Gives a claim up, or says how it ended. A completion holds the row's lock until its transaction has ended, so what is
 * released here is not being completed, and a completion that comes later finds no row.
 */
export async function releaseClaim({ sql }: Participant, { scope, key, token }: Claim): Promise<Ended> {
  const { count } = await sql`
    delete from holdfast.idempotency_keys where ctid = any (array(
      select ctid from holdfast.idempotency_keys
      where scope = ${scope} and key = ${key} and token = ${token} and response is null
      for update skip locked))`
  if (count > 0) return { state: 'released' }
  const [row] = await sql<{ completed: boolean; response: Json }[]>`
    select response is not null as completed, response from holdfast.idempotency_keys
    where scope = ${scope} and key = ${key} and token = ${token}`
  if (!row) return { state: 'lost' }
  return row.completed ? { state: 'completed', response: row.response } : { state: 'busy' }
}

/**
 * In the caller's transaction: removes at most `limit` keys that are past their expiry and not in flight. Returns how many.
 * The time is the statement's, which an index can be searched for.
 */
export async function removeExpiredKeys(tx: Tx, limit: number): Promise<number> {
  const { count } = await tx`
    delete from holdfast.idempotency_keys where ctid = any (array(
      select ctid from holdfast.idempotency_keys
      where expires_at <= statement_timestamp() and (response is not null or lease_until <= statement_timestamp())
      order by expires_at limit ${limit} for update skip locked))`
  return count
}

/** Of equal JSON values the same, in whatever order their keys come. */
export function hashFingerprint(fingerprint: Json): Buffer {
  return createHash('sha256')
    .update(canonicalJson(throughJson(fingerprint, 'fingerprint')))
    .digest()
}

const maxKeyLength = 255

/** Scope and key are texts of 1 to 255 characters that PostgreSQL can store. */
export function checkKeyPart(text: unknown, what: 'scope' | 'key'): asserts text is string {
  if (typeof text !== 'string' || text === '' || text.length > maxKeyLength)
    throw new InvalidPayloadError(
      `the ${what} of an idempotency key is not a text of 1 to ${maxKeyLength} characters`,
    )
  // The driver would send every lone surrogate as U+FFFD, and two different keys would be one.
  if (text.includes('\u0000') || !text.isWellFormed())
    throw new InvalidPayloadError(
      `the ${what} of an idempotency key has U+0000 or a lone surrogate in it, which PostgreSQL cannot store`,
    )
}
