import { createHash, randomBytes } from 'node:crypto'
import { InvalidNameError } from './errors.ts'

/**
 * Names and gids.
 *
 * A gid is what PostgreSQL sees. It has six parts joined by `/`, which no part may contain:
 *
 *     hf1/<installation>/<policy>/<participant>/<attempt>/<name>
 *
 * - installation: 16 hex digits, made by the first migration; `hf1/<installation>/` is the exact prefix by which
 *   Holdfast tells its own gids from everybody else's.
 * - policy: `f` commit forward (whoever finds it in doubt commits it), `a` presumed abort.
 * - attempt: 32 hex digits: the id of the process that staged it (16), then random (16). So a gid names its owner
 *   even where no row does, and recovery can leave the work of a live process alone.
 * - participant and name: as given, or, where too long, `~` and a hash. Never cut: two names never meet in one gid.
 *
 * PostgreSQL takes gids of at most 199 bytes; the longest made here has 4 + 17 + 2 + 26 + 33 + 101 = 183.
 */
type Policy = 'commit-forward' | 'presumed-abort'

export type GidParts = {
  installation: string
  policy: Policy
  participant: string
  attempt: string
  name: string
}

const version = 'hf1'
const namePattern = /^[A-Za-z0-9][A-Za-z0-9_.:-]*$/
const participantPattern = /^[a-z][a-z0-9_-]*$/
const maxNameBytes = 128
const maxParticipantBytes = 63
const nameBudget = 100
const participantBudget = 25

/** Throws InvalidNameError unless `name` is `[A-Za-z0-9][A-Za-z0-9_.:-]*` of at most 128 bytes. */
export function checkTransactionName(name: unknown): asserts name is string {
  if (typeof name !== 'string')
    throw new InvalidNameError(`a transaction name is a string, not ${typeof name}`)
  if (name === '')
    throw new InvalidNameError('a transaction name is empty; give the work a name, for example order_1')
  if (Buffer.byteLength(name) > maxNameBytes) {
    throw new InvalidNameError(
      `a transaction name has at most ${maxNameBytes} bytes, this one has ${Buffer.byteLength(name)}; use transactionName(operation, entityId), which hashes the entity id`,
    )
  }
  if (!namePattern.test(name)) {
    throw new InvalidNameError(
      `a transaction name consists of letters, digits and _ . : - and starts with a letter or digit; got ${JSON.stringify(name)}. Every database role can read names, so personal data does not belong there: use transactionName(operation, entityId), which hashes the entity id`,
    )
  }
}

/** Throws InvalidNameError unless `name` can be a participant: `[a-z][a-z0-9_-]*`, at most 63 bytes. */
export function checkParticipantName(name: string): void {
  if (!participantPattern.test(name) || name.length > maxParticipantBytes) {
    throw new InvalidNameError(
      `a database is named with lower-case letters, digits, _ and -, starting with a letter, at most ${maxParticipantBytes} bytes; got ${JSON.stringify(name)}`,
    )
  }
}

/**
 * A transaction name for an operation on one entity. The entity id may be anything (an e-mail address, a long key);
 * only its hash (SHA-256, 128 bits of it) appears in the name. The same pair gives the same name always.
 */
export function transactionName(operation: string, entityId: string): string {
  checkTransactionName(operation)
  const name = `${operation}:${createHash('sha256').update(entityId).digest('hex').slice(0, 32)}`
  checkTransactionName(name)
  return name
}

/** 16 random hex digits: the id of a process (a worker or a producer) and of an installation. */
export function newOwnerId(): string {
  return randomBytes(8).toString('hex')
}

/** Random bytes are drawn many at a time: each draw costs as much as a good part of a short transaction. */
let drawn = randomBytes(4096)
let used = 0

/** A new attempt id of a process: its owner id and 64 random bits. */
export function newAttempt(owner: string): string {
  if (used + 8 > drawn.length) {
    drawn = randomBytes(drawn.length)
    used = 0
  }
  used += 8
  return owner + drawn.toString('hex', used - 8, used)
}

/** The process that staged an attempt. */
export function ownerOf(attempt: string): string {
  return attempt.slice(0, 16)
}

/** An attempt as the database prints a uuid, or with hyphens left out, as 32 hex digits. */
export function attemptFromUuid(uuid: string): string {
  return uuid.replaceAll('-', '')
}

export function gidPrefix(installation: string): string {
  return `${version}/${installation}/`
}

export function formatGid(parts: GidParts): string {
  const { installation, participant, attempt, name } = parts
  if (!/^[0-9a-f]{16}$/.test(installation))
    throw new InvalidNameError(`not an installation id: ${installation}`)
  if (!/^[0-9a-f]{32}$/.test(attempt)) throw new InvalidNameError(`not an attempt id: ${attempt}`)
  checkParticipantName(participant)
  checkTransactionName(name)
  return join({ ...parts, participant: participantInGid(participant), name: nameInGid(name) })
}

/** The gid that the same attempt has in another participant; `parts` as they stand in a gid. */
export function siblingGid(parts: GidParts, participant: string): string {
  return join({ ...parts, participant: participantInGid(participant) })
}

function join({ installation, policy, participant, attempt, name }: GidParts): string {
  return `${gidPrefix(installation)}${policy === 'commit-forward' ? 'f' : 'a'}/${participant}/${attempt}/${name}`
}

const gidPattern =
  /^hf1\/([0-9a-f]{16})\/([fa])\/([a-z][a-z0-9_-]*|~[0-9a-f]{24})\/([0-9a-f]{32})\/([A-Za-z0-9][A-Za-z0-9_.:-]*|~[0-9a-f]{64})$/

/** The parts of a gid, with participant and name as they stand in it (perhaps hashed); undefined for foreign gids. */
export function parseGid(gid: string): GidParts | undefined {
  const match = gidPattern.exec(gid)
  if (!match) return undefined
  const [, installation = '', policy, participant = '', attempt = '', name = ''] = match
  return {
    installation,
    policy: policy === 'f' ? 'commit-forward' : 'presumed-abort',
    participant,
    attempt,
    name,
  }
}

/** A name as it stands in a gid. */
export function nameInGid(name: string): string {
  return fit(name, nameBudget)
}

/** A participant as it stands in a gid. */
export function participantInGid(participant: string): string {
  return fit(participant, participantBudget)
}

function fit(part: string, budget: number): string {
  if (Buffer.byteLength(part) <= budget) return part
  const hashDigits = budget >= 65 ? 64 : 24
  return `~${createHash('sha256').update(part).digest('hex').slice(0, hashDigits)}`
}
