import type postgres from 'postgres'

type Value = postgres.ParameterOrFragment<never>

/** postgres.js's SQL tag, without anything that begins, ends or changes a session. */
export interface Sql {
  /** Runs a query: tx`select * from orders where id = ${id}` */
  <T extends readonly (object | undefined)[] = postgres.Row[]>(
    template: TemplateStringsArray,
    ...values: readonly Value[]
  ): postgres.PendingQuery<T>
  /** A quoted identifier, for use inside a query: tx('orders') */
  (identifier: string): postgres.Helper<string, []>
  /** Rows for insert and update, or a list for `in`, for use inside a query: tx(rows, 'id', 'total') */
  <T>(values: readonly T[] | T, ...columns: readonly string[]): postgres.Helper<readonly T[] | T, string[]>
  /** A JSON parameter. */
  json(value: postgres.JSONValue): postgres.Parameter
  /** An array parameter. */
  array<T extends postgres.SerializableParameter[]>(value: T, type?: number): postgres.ArrayParameter<T>
  /** SQL text that was put together at run time; never put user input into the text, pass it as `values`. */
  unsafe<T extends postgres.Row[] = postgres.Row[]>(
    text: string,
    values?: postgres.ParameterOrJSON<never>[],
  ): postgres.PendingQuery<T>
}

/**
 * The handle that work gets: the SQL tag bound to one open transaction, without anything that could end it. A handle
 * refuses to run once its transaction is over, so a query that nobody awaited cannot land in somebody else's transaction.
 */
export interface Tx extends Sql {
  /** Runs `work` in a savepoint: when it throws, what it did is undone and the transaction goes on. */
  savepoint<T>(work: (tx: Tx) => Promise<T>): Promise<T>
}

/** A postgres.js query, which runs when it is first awaited, through the handler that it was made with. */
export type Runnable = {
  handler?: unknown
  resolve(this: void, result: unknown): void
  reject(this: void, error: Error): void
}

/** What of the driver makes a tag: a client, or a connection of it. */
type Driver = Pick<postgres.ReservedSql, 'json' | 'array' | 'unsafe'> &
  ((...args: Parameters<postgres.ReservedSql>) => unknown)

/** A tag whose queries are run by `run`. */
export function createSql(driver: Driver, run: (query: Runnable) => void): Sql {
  const call = (...args: Parameters<postgres.ReservedSql>): unknown => bindHandler(driver(...args), run)
  const sql = call as unknown as Sql
  sql.json = (value) => driver.json(value)
  sql.array = (value, type) => driver.array(value, type)
  sql.unsafe = (text: string, values: postgres.ParameterOrJSON<never>[] = []) =>
    bindHandler(driver.unsafe(text, values), run) as never
  return sql
}

/** Binds a handle to a reserved connection; `end` disables it. `run` is what runs a query on that connection. */
export function createTx(driver: Driver, run: (query: Runnable) => void): Tx & { end(): void } {
  let ended = false
  let savepoints = 0
  const runUnlessEnded = (query: Runnable) => {
    if (ended) query.reject(new Error('this transaction handle has ended: await every query inside the work'))
    else run(query)
  }
  const tx = createSql(driver, runUnlessEnded) as Tx & { end(): void }
  tx.savepoint = async <T>(work: (tx: Tx) => Promise<T>): Promise<T> => {
    const name = `holdfast_${++savepoints}`
    await tx.unsafe(`savepoint ${name}`)
    try {
      const result = await work(tx)
      await tx.unsafe(`release savepoint ${name}`)
      return result
    } catch (error) {
      await tx.unsafe(`rollback to savepoint ${name}; release savepoint ${name}`)
      throw error
    }
  }
  tx.end = () => {
    ended = true
  }
  return tx
}

/** Calls back when the driver settles a query, before whoever awaits it goes on. */
export function whenSettled(query: Runnable, settled: () => void): void {
  const { resolve, reject } = query
  query.resolve = (result) => {
    settled()
    resolve(result)
  }
  query.reject = (error) => {
    settled()
    reject(error)
  }
}

/** Makes a query run through `handler`; anything else that the driver's tag makes (identifiers, lists) stays as it is. */
export function bindHandler<Q>(query: Q, handler: (query: Runnable) => void): Q {
  if (typeof query === 'object' && query !== null && 'handler' in query) query.handler = handler
  return query
}
