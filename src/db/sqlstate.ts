import { isUntrusted } from './connection-url.ts'

/** The SQLSTATEs that Holdfast acts upon (PostgreSQL manual, appendix A). Anything else is not interpreted. */
export const SQLSTATE = {
  featureNotSupported: '0A000',
  invalidParameterValue: '22023',
  notNullViolation: '23502',
  uniqueViolation: '23505',
  activeTransaction: '25001',
  readOnlyTransaction: '25006',
  inFailedTransaction: '25P02',
  invalidTextRepresentation: '22P02',
  duplicateDatabase: '42P04',
  undefinedObject: '42704',
  duplicateObject: '42710',
  insufficientPrivilege: '42501',
  undefinedTable: '42P01',
  undefinedFunction: '42883',
  invalidSchemaName: '3F000',
  invalidCatalogName: '3D000',
  outOfSlots: '53200',
  notInPrerequisiteState: '55000',
  lockNotAvailable: '55P03',
  tooManyConnections: '53300',
  queryCanceled: '57014',
  serializationFailure: '40001',
  deadlockDetected: '40P01',
  adminShutdown: '57P01',
  crashShutdown: '57P02',
  cannotConnectNow: '57P03',
  idleInTransactionTimeout: '25P03',
  transactionTimeout: '25P04',
  idleSessionTimeout: '57P05',
  /** Holdfast's own: a position, a lease or an attempt is no longer the caller's. */
  fenced: 'HF001',
  /** Holdfast's own: the work ended the transaction that it was given. */
  escaped: 'HF002',
} as const

/** The SQLSTATE of a PostgreSQL error, wherever in the chain of causes it sits; undefined for other errors. */
export function sqlstateOf(error: unknown): string | undefined {
  for (let e: unknown = error, depth = 0; e instanceof Error && depth < 8; e = e.cause, depth++) {
    if ('code' in e && typeof e.code === 'string' && /^[0-9A-Z]{5}$/.test(e.code) && isOfPostgres(e, e.code))
      return e.code
  }
  return undefined
}

/**
 * Other libraries' codes look alike: Node's EPIPE and E2BIG, Prisma's P1001 and P2034. Both drivers give the server's
 * severity; where somebody made an error of the code alone it is of one of the standard's or PostgreSQL's classes, or ours.
 */
function isOfPostgres(error: Error, code: string): boolean {
  return 'severity' in error || classes.has(code.slice(0, 2))
}

/** PostgreSQL manual, appendix A; HF is Holdfast's own. */
const classes = new Set(
  '00 01 02 03 08 09 0A 0B 0F 0L 0P 0Z 10 20 21 22 23 24 25 26 27 28 2B 2D 2F 34 38 39 3B 3D 3F 40 42 44 53 54 55 57 58 72 F0 HV P0 XX HF'.split(
    ' ',
  ),
)

const lossStates: ReadonlySet<string> = new Set([
  SQLSTATE.tooManyConnections,
  SQLSTATE.adminShutdown,
  SQLSTATE.crashShutdown,
  SQLSTATE.cannotConnectNow,
  SQLSTATE.idleSessionTimeout,
  SQLSTATE.idleInTransactionTimeout,
])

/** Of the driver and of Node; UNREPLICATED is ours. */
const lossCodes = new Set([
  'CONNECTION_CLOSED',
  'CONNECTION_DESTROYED',
  'CONNECTION_ENDED',
  'CONNECT_TIMEOUT',
  'ECONNREFUSED',
  'ECONNRESET',
  'EPIPE',
  'ETIMEDOUT',
  'EHOSTUNREACH',
  'ENETUNREACH',
  'ENOTFOUND',
  'EAI_AGAIN',
  'UNREPLICATED',
])

/**
 * True when the server's answer was lost, so the statement may or may not have taken effect: the connection broke,
 * the server was going down or takes no more connections (class 08, 57P0x, 53300), one of its time-outs ended the session
 * (25P03, 57P05), or the wait for a synchronous standby was cancelled.
 */
export function isConnectionLoss(error: unknown): boolean {
  const state = sqlstateOf(error)
  if (state !== undefined) return state.startsWith('08') || lossStates.has(state)
  return error instanceof Error && 'code' in error && lossCodes.has(String(error.code))
}

/** True when no session was opened: the server is not there (or going), or it knows neither the database nor the login (class 28). */
export function isUnreachable(error: unknown): boolean {
  const state = sqlstateOf(error)
  return isConnectionLoss(error) || state === SQLSTATE.invalidCatalogName || state?.startsWith('28') === true
}

/** True when somebody else holds what this statement wants, so the same thing may be tried again a little later. */
export function isContention(error: unknown): boolean {
  const state = sqlstateOf(error)
  return (
    state === SQLSTATE.lockNotAvailable ||
    state === SQLSTATE.serializationFailure ||
    state === SQLSTATE.deadlockDetected ||
    state === SQLSTATE.outOfSlots
  )
}

/** True when time may heal it: the server could not be reached or was busy. Anything else fails the same way again. */
export function isPassing(error: unknown): boolean {
  const state = sqlstateOf(error)
  return (
    isConnectionLoss(error) ||
    isContention(error) ||
    isUntrusted(error) ||
    state === SQLSTATE.notInPrerequisiteState ||
    state === SQLSTATE.queryCanceled ||
    state === SQLSTATE.transactionTimeout ||
    state === SQLSTATE.readOnlyTransaction
  )
}
