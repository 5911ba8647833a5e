import type { Logger } from 'pino'
import type { Json } from '../db/json.ts'

/** What a compensation gets. It may run more than once for one attempt: `idempotencyKey` is the same each time. */
export type CompensationContext = {
  name: string
  attempt: string
  /** what the work had returned */
  staged: Json
  metadata: Json
  /** why it was rolled back */
  reason: string | null
  idempotencyKey: string
  signal: AbortSignal
  log: Logger
}

/** What a crash must be able to find again about the transactions of one operation. */
export type Operation = {
  /** undoes, outside the databases, what effects may have done; runs once the rollback is proved */
  compensate?: (context: CompensationContext) => Promise<void> | void
}

/** As this process knows it. */
export type KnownOperation = Operation & {
  /** whether somebody goes on with the transaction of this name before long, so that its deadline alone does not end it */
  resumes?: (name: string) => Promise<boolean>
}
