import {
  type CompiledQuery,
  type DatabaseConnection,
  type Driver,
  Kysely,
  PostgresAdapter,
  PostgresIntrospector,
  PostgresQueryCompiler,
  type QueryResult,
} from 'kysely'
import type postgres from 'postgres'
import { InvalidConfigError } from './db/errors.ts'
import type { Tx } from './db/tx.ts'

/**
 * A Kysely that runs every query through the given transaction: what it writes is staged, committed and rolled back
 * with the rest of the work. It has no connection of its own, so it is cheap to make and need not be destroyed, and it
 * ends with its `tx`.
 *
 * Values and rows are those of Kysely's PostgresDialect, except `point`, `circle` and `interval`, which come back as
 * PostgreSQL's text.
 *
 * Throws InvalidConfigError for what would begin or end a transaction (use tx.savepoint for a part that may fail) and
 * for streaming, and the database's errors as they are.
 */
export function kysely<DB>(tx: Tx): Kysely<DB> {
  return new Kysely<DB>({
    dialect: {
      createAdapter: () => new PostgresAdapter(),
      createDriver: () => new TxDriver(tx),
      createIntrospector: (db) => new PostgresIntrospector(db),
      createQueryCompiler: () => new PostgresQueryCompiler(),
    },
  })
}

class TxDriver implements Driver {
  readonly #connection: DatabaseConnection

  constructor(tx: Tx) {
    this.#connection = {
      executeQuery: <R>(query: CompiledQuery) => execute<R>(tx, query),
      // Refused at the first `next`, where a caller's `for await` looks for errors.
      streamQuery: <R>() => refusedStream<R>(),
    }
  }

  acquireConnection = async (): Promise<DatabaseConnection> => this.#connection
  init = async (): Promise<void> => undefined
  releaseConnection = async (): Promise<void> => undefined
  destroy = async (): Promise<void> => undefined
  beginTransaction = async (): Promise<void> => refuseTransactionControl()
  commitTransaction = async (): Promise<void> => refuseTransactionControl()
  rollbackTransaction = async (): Promise<void> => refuseTransactionControl()
}

function refuseTransactionControl(): never {
  throw new InvalidConfigError([
    'this Kysely is part of a transaction that Holdfast ends: call its methods without db.transaction(), and use tx.savepoint for a part that may fail',
  ])
}

async function* refusedStream<R>(): AsyncIterableIterator<QueryResult<R>> {
  yield* []
  throw new InvalidConfigError([
    'staged work does not stream rows: it would keep its transaction open. Read page by page, by key',
  ])
}

/** Statements that would end the transaction under Holdfast's feet; `rollback to savepoint` is none of them. */
const transactionControl =
  /^\s*(begin|start\s+transaction|commit|end|abort|prepare\s+transaction|rollback(?!\s+((work|transaction)\s+)?to\b))\b/i

async function execute<R>(tx: Tx, query: CompiledQuery): Promise<QueryResult<R>> {
  if (transactionControl.test(query.sql)) refuseTransactionControl()
  const values = query.parameters.map((value) => toParameter(tx, value))
  const result = await tx.unsafe(query.sql, values as postgres.ParameterOrJSON<never>[])
  // Raw SQL of several statements has a list of results; node-postgres's dialect shows none of them either.
  if (!('command' in result)) return { rows: [] }
  for (const { name, type } of result.columns ?? []) {
    if (dateOids.has(type)) for (const row of result) row[name] = toLocalDate(row[name])
  }
  const rows = [...result] as R[]
  return changesRows.has(result.command) ? { rows, numAffectedRows: BigInt(result.count) } : { rows }
}

const changesRows = new Set(['INSERT', 'UPDATE', 'DELETE', 'MERGE'])

/** date and date[] */
const dateOids = new Set([1082, 1182])

/** The driver reads a date as midnight UTC, node-postgres as local midnight, which is also how dates are written. */
function toLocalDate(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(toLocalDate)
  if (!(value instanceof Date)) return value
  return new Date(value.getUTCFullYear(), value.getUTCMonth(), value.getUTCDate())
}

/** The pseudo-type that a quoted literal has: the server gives it the type of the place where it stands. */
const unknownOid = 705

/**
 * Values go as untyped text, as node-postgres sends them. Left to itself, the driver would serialise by the type of the
 * column: what was made with JSON.stringify would become a JSON string once more, and 'true' would become false.
 */
function toParameter(tx: Tx, value: unknown): object | null {
  const text = toText(value)
  return text === null ? null : Object.assign(tx.json(text), { type: unknownOid, raw: value })
}

function toText(value: unknown): string | null {
  if (value === null || value === undefined) return null
  if (typeof value === 'string') return value
  if (typeof value === 'number' || typeof value === 'bigint' || typeof value === 'boolean') return `${value}`
  if (ArrayBuffer.isView(value)) {
    return `\\x${Buffer.from(value.buffer, value.byteOffset, value.byteLength).toString('hex')}`
  }
  if (value instanceof Date) return toLocalTime(value)
  if (Array.isArray(value)) return toArrayText(value)
  if (typeof value === 'object' && 'toPostgres' in value && typeof value.toPostgres === 'function')
    return toText(value.toPostgres(toText) as unknown)
  return JSON.stringify(value)
}

function toArrayText(values: readonly unknown[]): string {
  const elements = values.map((value) => {
    if (Array.isArray(value)) return toArrayText(value)
    const text = toText(value)
    return text === null ? 'NULL' : `"${text.replaceAll(/["\\]/g, String.raw`\$&`)}"`
  })
  return `{${elements.join(',')}}`
}

/** Local time with its offset: an instant for timestamptz, the local date or time for date and timestamp. */
function toLocalTime(date: Date): string {
  const minutes = -Math.trunc(date.getTimezoneOffset())
  const local = new Date(date.getTime() + minutes * 60_000).toISOString().slice(0, -1)
  const [hour, minute] = [Math.trunc(Math.abs(minutes) / 60), Math.abs(minutes) % 60]
  return `${local}${minutes < 0 ? '-' : '+'}${pad(hour)}:${pad(minute)}`
}

function pad(number: number): string {
  return String(number).padStart(2, '0')
}
