import type postgres from 'postgres'
import { createClient } from '../db/client.ts'
import { SQLSTATE } from '../db/sqlstate.ts'
import { createTx, type Tx } from '../db/tx.ts'
import { type DriverQuery, deliver, render } from './driver-query.ts'
import type { FakeContext } from './fake-context.ts'
import type { FakeUnit } from './fake-unit.ts'
import type { Statement } from './statements.ts'

/** Makes the queries; it never connects. */
const driver = createClient('postgres://fake?sslmode=disable', { max: 1 }) as postgres.ReservedSql

export type FakeSession = {
  readonly tx: Tx
  readonly participant: string
  end(): void
  /** the error that aborted the transaction, unless a savepoint undid it */
  failure(): unknown
}

/**
 * The transaction that staged work gets: the product's own handle and the driver's own queries, so the tag, its helpers
 * and savepoints behave as ever. Only where a query would leave for the server, it is recorded and answered with what
 * the test registered. As in PostgreSQL, after an error nothing goes on except by way of a savepoint.
 */
export function openSession(
  { statements, events, jobs, seen, own }: FakeContext,
  unit: FakeUnit,
  participant: string,
): FakeSession {
  let failure: unknown
  // What a rollback to a savepoint takes back, oldest first.
  const undos: (() => void)[] = []
  const savepoints = new Map<string, number>()

  const execute = async (statement: Statement): Promise<readonly object[]> => {
    const [, verb, name = ''] =
      /^\s*(savepoint|release|rollback\s+to)(?:\s+savepoint)?\s+(\w+)/i.exec(statement.text) ?? []
    if (verb?.toLowerCase().startsWith('rollback')) {
      failure = undefined
      for (const undo of undos.splice(savepoints.get(name) ?? 0)) undo()
      return []
    }
    if (failure !== undefined) throw transactionAborted(failure)
    if (verb !== undefined) {
      if (verb.toLowerCase() === 'savepoint') savepoints.set(name, undos.length)
      return []
    }
    const appended = events.appendedBy(statement, unit)
    if (appended) {
      undos.push(() => events.remove(appended))
      return []
    }
    const recording =
      seen.recordedBy(statement, participant, unit) ?? jobs.insertedBy(statement, participant, unit)
    if (recording) {
      const { rows, undo } = await recording
      undos.push(undo)
      return rows
    }
    return statements.answer(participant, unit.name, statement)
  }

  const run = async (query: DriverQuery): Promise<void> => {
    try {
      const statement = render(driver, query)
      await deliver(driver, query, await execute(statement), statement.text)
    } catch (error) {
      failure ??= error
      query.reject(error as Error)
    }
  }

  const tx = createTx(driver, (query) => void run(query as unknown as DriverQuery))
  own.add(tx)
  return { tx, participant, end: () => tx.end(), failure: () => failure && transactionAborted(failure) }
}

function transactionAborted(cause: unknown): Error {
  const text = 'current transaction is aborted, commands ignored until end of transaction block'
  return Object.assign(new Error(text, { cause }), { code: SQLSTATE.inFailedTransaction })
}
