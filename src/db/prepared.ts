import type { Connection, Result } from './connection.ts'
import type { Participant, Sql } from './databases.ts'
import type { HoldfastError } from './errors.ts'
import { EscapedWorkError, FencedError, InvalidNameError, NoSlotsError, NotPreparedError } from './errors.ts'
import { messageOf } from './message-of.ts'
import { twoPhaseDisabled } from './migrate.ts'
import { SQLSTATE, sqlstateOf } from './sqlstate.ts'
import { gidPrefix, parseGid } from './transaction-name.ts'

/**
 * The only place with PREPARE TRANSACTION, COMMIT PREPARED and ROLLBACK PREPARED. None of them takes a bind
 * parameter, so the gid is checked against the pattern of our own gids, which leaves nothing to quote.
 */

/**
 * Opens the transaction. The attempt travels in a transaction-local setting: the marker takes it from there, so work
 * that ended this transaction and went on in another can write no marker, and nothing of it is prepared.
 */
export function beginText(attempt: string): string {
  return `BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL holdfast.attempt = '${attempt}'`
}

/**
 * Ends the staging, as one message, so that after an error in it nothing further of it runs. Whoever the work made itself,
 * the connection's own login seals; the gid belongs to the owner role, or without one to the login.
 */
export function prepareText(gid: string, seal: string, ownerRole: string | undefined): string {
  return ['RESET SESSION AUTHORIZATION', seal, ...becomeOwner(ownerRole), prepareGid(gid)].join('; ')
}

/** A whole staging as one message, for work that consists of statements of our own (an outbox page). */
export function stagePageText(
  gid: string,
  attempt: string,
  ownerRole: string | undefined,
  work: readonly string[],
): string {
  return [
    beginText(attempt),
    'SET LOCAL synchronous_commit = on',
    ...work,
    ...becomeOwner(ownerRole),
    prepareGid(gid),
  ].join('; ')
}

function becomeOwner(ownerRole: string | undefined): string[] {
  return ownerRole === undefined ? [] : [`SET LOCAL ROLE ${quoteRole(ownerRole)}`]
}

function prepareGid(gid: string): string {
  return `PREPARE TRANSACTION ${quoteGid(gid)}`
}

/** Throws unless the PREPARE really prepared: in an aborted transaction it answers ROLLBACK and no error. */
export function checkPrepared(results: readonly Result[]): void {
  const tag = results.at(-1)?.command
  if (tag !== 'PREPARE TRANSACTION') {
    throw new NotPreparedError(
      `nothing was prepared: the server answered ${tag ?? 'nothing'} to PREPARE TRANSACTION`,
    )
  }
}

/** Turns the database's error at the end of a staging into one that says what to do. */
export function explainPrepareFailure(participant: string, cause: unknown): HoldfastError {
  switch (sqlstateOf(cause)) {
    case SQLSTATE.outOfSlots:
      // The same state is said of memory and of locks, by what runs at the end of a transaction as well.
      if (!isOfSlots(cause)) break
      return new NoSlotsError(
        `the server of ${participant} has no free slot for a prepared transaction; try again later, or raise max_prepared_transactions (restart needed). \`holdfast tx list\` shows who holds them`,
        { cause },
      )
    case SQLSTATE.notInPrerequisiteState:
      return twoPhaseDisabled(participant, cause)
    case SQLSTATE.inFailedTransaction:
      return new NotPreparedError(
        `the work on ${participant} went on after one of its statements had failed, so there is nothing to prepare; let the error through, or wrap the statement in tx.savepoint`,
        { cause },
      )
    case SQLSTATE.featureNotSupported:
      return new NotPreparedError(
        `the work on ${participant} used something that cannot be prepared: ${messageOf(cause)}. LISTEN, NOTIFY, temporary tables, WITH HOLD cursors and exported snapshots do not go into staged work; do them outside it`,
        { cause },
      )
    case SQLSTATE.invalidTextRepresentation:
      // The marker takes the attempt from the transaction-local setting, which is empty in any other transaction.
      if (!messageOf(cause).includes('uuid: ""')) break
      return new EscapedWorkError(
        `the work on ${participant} ended its own transaction (COMMIT or ROLLBACK); what it committed stays. Leave the end of the transaction to Holdfast`,
        { cause },
      )
    case SQLSTATE.uniqueViolation:
      if (constraintOf(cause) !== 'transaction_markers_attempt') break
      return new FencedError(
        `the attempt on ${participant} was rolled back by recovery while it was being staged; begin it again`,
        { cause },
      )
    case SQLSTATE.fenced:
      return new FencedError(`${participant}: ${messageOf(cause)}`, { cause })
    default:
  }
  return new NotPreparedError(`the work on ${participant} was not prepared: ${messageOf(cause)}`, {
    cause,
  })
}

/**
 * COMMIT PREPARED as messages for a flush; the answer is the one at `answer`. It runs in no block with anything else, so
 * becoming the owner and itself again are messages of their own.
 */
export function commitPreparedTexts(
  gid: string,
  ownerRole: string | undefined,
): { texts: string[]; answer: number } {
  return asOwner(`COMMIT PREPARED ${quoteGid(gid)}`, ownerRole)
}

function asOwner(text: string, ownerRole: string | undefined): { texts: string[]; answer: number } {
  if (ownerRole === undefined) return { texts: [text], answer: 0 }
  return { texts: [`SET ROLE ${quoteRole(ownerRole)}`, text, 'RESET ROLE'], answer: 1 }
}

/** `absent` (42704) is a question, not an answer: the marker tells whether it committed. */
export type Finished = 'done' | 'absent'

export function commitPrepared(participant: Participant, gid: string): Promise<Finished> {
  return finish(participant, 'COMMIT', gid)
}

export function rollbackPrepared(participant: Participant, gid: string): Promise<Finished> {
  return finish(participant, 'ROLLBACK', gid)
}

/**
 * Finishes on a connection of the staging pool, as the owner role. What does not belong to it (prepared before the roles
 * were installed, or when this process did not know of them yet) is tried once more as the owner that the server names,
 * the login itself most likely. 42501: the login may be neither.
 */
async function finish(participant: Participant, verb: 'COMMIT' | 'ROLLBACK', gid: string): Promise<Finished> {
  const text = `${verb} PREPARED ${quoteGid(gid)}`
  const connection = await participant.staging.acquire()
  try {
    return await finishOn(connection, asOwner(text, participant.ownerRole))
  } catch (error) {
    if (sqlstateOf(error) !== SQLSTATE.insufficientPrivilege) throw error
    return await finishOn(connection, asRecordedOwner(text, gid))
  } finally {
    await participant.staging.release(connection, true)
  }
}

function asRecordedOwner(text: string, gid: string): { texts: string[]; answer: number } {
  const become = `SELECT set_config('role', owner, false) FROM pg_catalog.pg_prepared_xacts WHERE gid = ${quoteGid(gid)}`
  return { texts: [become, text, 'RESET ROLE'], answer: 1 }
}

/** A gid that another session is just finishing (55000) is retried. */
async function finishOn(
  connection: Connection,
  { texts, answer }: { texts: string[]; answer: number },
): Promise<Finished> {
  for (let attemptsLeft = 20; ; attemptsLeft--) {
    // Each a message of its own: the role is given back also after an error.
    const answers = await connection.flush(texts)
    const finished = answers[answer]
    // Whether the role could be taken is of no interest then.
    if (finished?.status !== 'rejected') return 'done'
    const state = sqlstateOf(finished.reason)
    if (state === SQLSTATE.undefinedObject) return 'absent'
    if (state !== SQLSTATE.notInPrerequisiteState || attemptsLeft <= 0) throw finished.reason
    await connection.send('SELECT pg_sleep(0.02)')
  }
}

export type PreparedTransaction = {
  gid: string
  /** of the database, as text */
  xid: string
  /** when it was prepared, by the server's clock */
  preparedAt: Date
  owner: string
}

/** Our own gids in this database, by exact prefix. A standby lists none although it will have them when promoted. */
export async function listPrepared(sql: Sql, installation: string): Promise<PreparedTransaction[]> {
  return sql<PreparedTransaction[]>`
    select gid, transaction::text as xid, prepared as "preparedAt", owner from pg_catalog.pg_prepared_xacts
    where database = current_database() and starts_with(gid, ${gidPrefix(installation)})
    order by prepared`
}

/** The check in the table lets only such names be recorded; here nothing is left to quote. */
function quoteRole(role: string): string {
  if (!/^[a-z_][a-z0-9_]{0,62}$/.test(role))
    throw new InvalidNameError(`not the name of an owner role: ${JSON.stringify(role)}`)
  return `"${role}"`
}

function quoteGid(gid: string): string {
  if (!parseGid(gid)) throw new InvalidNameError(`not a gid of Holdfast's: ${JSON.stringify(gid)}`)
  return `'${gid}'`
}

/** True on a standby, whose answers about prepared transactions mean nothing. */
export async function isInRecovery(sql: Sql): Promise<boolean> {
  const [row] = await sql<{ standby: boolean }[]>`select pg_is_in_recovery() as standby`
  return row?.standby ?? true
}

/** A server that does not say where an error comes from is taken at its word. */
function isOfSlots(cause: unknown): boolean {
  const routine = cause instanceof Error && 'routine' in cause ? cause.routine : undefined
  return routine === undefined || routine === 'MarkAsPreparing'
}

function constraintOf(error: unknown): unknown {
  return error instanceof Error && 'constraint_name' in error ? error.constraint_name : undefined
}
