import { InvalidConfigError } from '../db/errors.ts'
import type { Json } from '../db/json.ts'

export type BeginOptions = {
  /** groups transactions of one kind, and finds their compensation: `operations` in the config */
  operation?: string
  /** default 24 hours; past it the transaction is rolled back unless it was decided */
  deadlineMs?: number
  /** kept with the row as it is */
  metadata?: Json
  correlationId?: string
  /** W3C traceparent of the caller; default: that of the active OpenTelemetry span */
  traceparent?: string
  /** the services that vote: the last `ready` commits, the first `abort` or the deadline rolls back */
  awaits?: readonly string[]
  /** the database roles whose members may commit it or roll it back; default: whoever may use this installation */
  finishers?: readonly string[]
}

/** Throws InvalidConfigError with everything that is wrong. */
export function checkBeginOptions(
  databases: readonly string[],
  { awaits = [], deadlineMs = 1, finishers }: BeginOptions,
): void {
  const problems: string[] = []
  if (!Number.isFinite(deadlineMs) || deadlineMs <= 0)
    problems.push('deadlineMs is a positive number of milliseconds')
  if (new Set(awaits).size < awaits.length) problems.push('awaits names a service twice')
  for (const service of awaits) {
    if (!/^[a-z][a-z0-9_-]{0,62}$/.test(service))
      problems.push(
        `awaits: ${JSON.stringify(service)} is not the name of a service (lower-case letters, digits, _ and -)`,
      )
    else if (databases.includes(service))
      problems.push(`awaits: ${service} is a database; only services vote`)
  }
  if (finishers?.length === 0) problems.push('finishers is empty: nobody could finish it')
  if (problems.length > 0) throw new InvalidConfigError(problems)
}
