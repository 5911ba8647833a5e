import { hostname } from 'node:os'
import { type Logger, pino } from 'pino'

/**
 * Logs go to standard error as JSON lines; standard output belongs to what a command prints. Of an error only its
 * type, code, message, stack and causes are written: a PostgreSQL error's detail, parameters and query hold payloads.
 */
export function createLog(level: string, name: string): Logger {
  // Not pino's own `name`, which lines about a transaction have as well: of two equal keys a reader of JSON keeps one.
  const base = { pid: process.pid, hostname: hostname(), program: name }
  return pino({ base, level, serializers: { err: serializeError } }, pino.destination({ fd: 2, sync: true }))
}

type SerializedError = {
  type: string
  code?: string
  message: string
  stack?: string
  cause?: SerializedError
}

function serializeError(error: unknown, depth = 0): SerializedError {
  if (!(error instanceof Error)) return { type: typeof error, message: String(error) }
  const serialized: SerializedError = { type: error.name, message: error.message }
  if ('code' in error && typeof error.code === 'string') serialized.code = error.code
  if (error.stack !== undefined && depth === 0) serialized.stack = error.stack
  if (error.cause !== undefined && depth < 4) serialized.cause = serializeError(error.cause, depth + 1)
  return serialized
}
