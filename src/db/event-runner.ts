import type postgres from 'postgres'
import { InvalidPayloadError } from './errors.ts'
import type { Tx } from './tx.ts'

/**
 * The caller's transaction, as far as `publish` and `once` need it: a Holdfast or postgres.js transaction, or anything
 * with node-postgres's query().
 */
export type EventRunner =
  | Tx
  | postgres.TransactionSql
  | { query(text: string, values: unknown[]): Promise<unknown> }

/**
 * Whether the runner is an SQL tag; otherwise it has query(). Throws InvalidPayloadError for what is no transaction: in
 * a pool the row would commit by itself, whatever becomes of the caller's work.
 */
export function isSqlTag(runner: EventRunner, call: string): runner is Tx | postgres.TransactionSql {
  if (typeof runner === 'function' && 'savepoint' in runner) return true
  // A pool of node-postgres has query() as well; it also counts its clients.
  if (typeof runner === 'object' && typeof runner?.query === 'function' && !('totalCount' in runner))
    return false
  throw new InvalidPayloadError(
    `${call} needs the transaction that it belongs to: the tx of the work, a postgres.js transaction, or a client with query(text, values); a pool is none`,
  )
}

/** The rows that query() answered with: in node-postgres's result, or alone, as some of the mappers on top of it do. */
export function rowsOf(result: unknown, call: string): readonly unknown[] {
  const rows: unknown =
    typeof result === 'object' && result !== null && 'rows' in result ? result.rows : result
  if (Array.isArray(rows)) return rows
  throw new InvalidPayloadError(
    `${call} needs a client whose query() answers with rows, as node-postgres does`,
  )
}
