/**
 * Every error Holdfast throws on purpose. `code` is the stable part that programs match on; the message says what
 * happened and what to do next; `cause` keeps the error underneath. docs/errors.md lists every code.
 */
export abstract class HoldfastError extends Error {
  abstract readonly code: `HOLDFAST_${string}`

  constructor(message: string, options?: ErrorOptions) {
    super(message, options)
    this.name = new.target.name
  }
}

/** A transaction name that PostgreSQL or the gid format could not carry safely. */
export class InvalidNameError extends HoldfastError {
  readonly code = 'HOLDFAST_INVALID_NAME'
}

/** An attempt of this name is under way, or was committed and is still within retention. */
export class NameInUseError extends HoldfastError {
  readonly code = 'HOLDFAST_NAME_IN_USE'
}

/** Work was addressed to a database that the config does not declare. */
export class UnknownParticipantError extends HoldfastError {
  readonly code = 'HOLDFAST_UNKNOWN_PARTICIPANT'
}

/** No sink of this name has a cursor in the outbox. */
export class UnknownSinkError extends HoldfastError {
  readonly code = 'HOLDFAST_UNKNOWN_SINK'
}

/** No attempt of this name was ever recorded, or retention removed it. */
export class UnknownTransactionError extends HoldfastError {
  readonly code = 'HOLDFAST_UNKNOWN_TRANSACTION'
}

/** No job, or no batch job, of this id is recorded: it never was, or retention removed it. */
export class UnknownJobError extends HoldfastError {
  readonly code = 'HOLDFAST_UNKNOWN_JOB'
}

/** The work could not be prepared; `cause` is the database's error and nothing is left behind. */
export class NotPreparedError extends HoldfastError {
  readonly code = 'HOLDFAST_NOT_PREPARED'
}

/** The work ended its own transaction; what it committed by itself stays, and an operator has to look. */
export class EscapedWorkError extends NotPreparedError {}

/** The transaction was rolled back, so it cannot be committed. */
export class RolledBackError extends HoldfastError {
  readonly code = 'HOLDFAST_ROLLED_BACK'
}

/** The transaction was committed, so it cannot be rolled back. */
export class CommittedError extends HoldfastError {
  readonly code = 'HOLDFAST_COMMITTED'
}

/** This login, token or service is not among those who may do this. */
export class NotAllowedError extends HoldfastError {
  readonly code = 'HOLDFAST_NOT_ALLOWED'
}

/** It waits for votes: only the last `ready` commits it. */
export class VotesOutstandingError extends HoldfastError {
  readonly code = 'HOLDFAST_VOTES_OUTSTANDING'
}

/** The service has voted otherwise already; a vote is final. */
export class VoteConflictError extends HoldfastError {
  readonly code = 'HOLDFAST_VOTE_CONFLICT'
}

/** Every slot of `max_prepared_transactions` is taken: back-pressure, try again later. */
export class NoSlotsError extends HoldfastError {
  readonly code = 'HOLDFAST_NO_SLOTS'
}

/** All connections of this process for such work are in use: back-pressure, try again later. */
export class NoConnectionsError extends HoldfastError {
  readonly code = 'HOLDFAST_NO_CONNECTIONS'
}

/** The server runs with `max_prepared_transactions = 0`. */
export class TwoPhaseDisabledError extends HoldfastError {
  readonly code = 'HOLDFAST_TWO_PHASE_DISABLED'
}

/** The configuration, a definition or an argument is wrong; `problems` lists everything that is. */
export class InvalidConfigError extends HoldfastError {
  readonly code = 'HOLDFAST_INVALID_CONFIG'
  readonly problems: readonly string[]

  constructor(problems: readonly string[], options?: ErrorOptions) {
    super(
      problems.length === 1 ? String(problems[0]) : `\n${problems.map((p) => `  - ${p}`).join('\n')}`,
      options,
    )
    this.problems = problems
  }
}

/** Rows of a batch's source do not keep what its key promises: two have the same one, or one has null in it. */
export class SourceKeyError extends HoldfastError {
  readonly code = 'HOLDFAST_SOURCE_KEY'
}

/** A payload, input or staged value that JSON cannot carry. */
export class InvalidPayloadError extends HoldfastError {
  readonly code = 'HOLDFAST_INVALID_PAYLOAD'
}

/** A newer owner holds the lease, the lock or the position: this run must stop, and its work is not applied. */
export class FencedError extends HoldfastError {
  readonly code = 'HOLDFAST_FENCED'
}

/** The call with this idempotency key is under way elsewhere. */
export class IdempotencyInFlightError extends HoldfastError {
  readonly code = 'HOLDFAST_IDEMPOTENCY_IN_FLIGHT'
  /** after how long it makes sense to try again; milliseconds */
  readonly retryAfterMs: number

  constructor(message: string, options: ErrorOptions & { retryAfterMs: number }) {
    super(message, options)
    this.retryAfterMs = options.retryAfterMs
  }
}

/** The idempotency key belongs to a call with another fingerprint. */
export class IdempotencyMismatchError extends HoldfastError {
  readonly code = 'HOLDFAST_IDEMPOTENCY_MISMATCH'
}

/** The response is larger than what may be stored for an idempotency key. */
export class ResponseTooLargeError extends HoldfastError {
  readonly code = 'HOLDFAST_RESPONSE_TOO_LARGE'
}

/** What was to be done before is not done yet: the batch with these parameters has no completed job. */
export class BatchNotCompletedError extends HoldfastError {
  readonly code = 'HOLDFAST_BATCH_NOT_COMPLETED'
}

/** The batch job is in a state in which this cannot be done to it. */
export class WrongBatchStateError extends HoldfastError {
  readonly code = 'HOLDFAST_WRONG_BATCH_STATE'
}

/** The job is in a state in which this cannot be done to it. */
export class WrongJobStateError extends HoldfastError {
  readonly code = 'HOLDFAST_WRONG_JOB_STATE'
}

/** What an earlier attempt of a job did outside is not undone yet; `givenUp`: its compensation failed for good. */
export class CompensationOutstandingError extends HoldfastError {
  readonly code = 'HOLDFAST_COMPENSATION_OUTSTANDING'
  readonly givenUp: boolean

  constructor(message: string, options: ErrorOptions & { givenUp: boolean }) {
    super(message, options)
    this.givenUp = options.givenUp
  }
}

/** Something that is not at its end holds the cursors of a sink: back-pressure, try again later. */
export class CursorBusyError extends HoldfastError {
  readonly code = 'HOLDFAST_CURSOR_BUSY'
}

/** The database lacks the `holdfast` schema or has an older version of it than the code. */
export class SchemaOutdatedError extends HoldfastError {
  readonly code = 'HOLDFAST_SCHEMA_OUTDATED'
}

/** The database was migrated by a newer Holdfast than this one. */
export class SchemaTooNewError extends HoldfastError {
  readonly code = 'HOLDFAST_SCHEMA_TOO_NEW'
}

/** The embedded PostgreSQL could not be started; the message carries the reason from its log. */
export class EmbeddedServerError extends HoldfastError {
  readonly code = 'HOLDFAST_EMBEDDED_SERVER'
}

/** The network hid an outcome and the database could not be asked; recovery will finish the transaction. */
export class UnknownOutcomeError extends HoldfastError {
  readonly code = 'HOLDFAST_UNKNOWN_OUTCOME'
}

/** No session could be opened: the server does not answer, or it knows neither the database nor the login. */
export class DatabaseUnreachableError extends HoldfastError {
  readonly code = 'HOLDFAST_DATABASE_UNREACHABLE'
}

/** The database was restored to an earlier time, and the outbox has to be told; nothing is published meanwhile. */
export class RestoredDatabaseError extends HoldfastError {
  readonly code = 'HOLDFAST_DATABASE_RESTORED'
}

/** Thrown by a sink for one event that it does not take although it takes others. `permanent`: trying again is of no use. */
export class RejectedEventError extends HoldfastError {
  readonly code = 'HOLDFAST_EVENT_REJECTED'
  readonly permanent: boolean

  constructor(message: string, options: ErrorOptions & { permanent?: boolean } = {}) {
    super(message, options)
    this.permanent = options.permanent === true
  }
}

/** A sink that cannot take anything now; the page is rolled back and tried again later. */
export class SinkUnavailableError extends HoldfastError {
  readonly code = 'HOLDFAST_SINK_UNAVAILABLE'
  /** how long the sink asked to be left alone, where it did; milliseconds */
  readonly retryAfterMs: number | undefined

  constructor(message: string, options: ErrorOptions & { retryAfterMs?: number | undefined } = {}) {
    super(message, options)
    this.retryAfterMs = options.retryAfterMs
  }
}

/** True of Holdfast's own errors after which the same call is to be made again later: nothing is wrong with it. */
export function isForLater(error: unknown): boolean {
  return (
    error instanceof NoSlotsError ||
    error instanceof NoConnectionsError ||
    error instanceof UnknownOutcomeError
  )
}
