import type postgres from 'postgres'

type Value = postgres.ParameterOrFragment<never>

/**
 * The handle that work gets: postgres.js's SQL tag bound to one open transaction, without anything that could end
 * it. A handle refuses to run once its transaction is over, so a query that nobody awaited cannot land in somebody
 * else's transaction.
 */
export interface Tx {
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
  /** Runs `work` in a savepoint: when it throws, what it did is undone and the transaction goes on. */
  savepoint<T>(work: (tx: Tx) => Promise<T>): Promise<T>
}

/** A postgres.js query, which runs when it is first awaited, through the handler that it was made with. */
type Runnable = { handler?: unknown; reject(error: Error): void }

/** Binds a handle to a reserved connection; `end` disables it. `run` is what runs a query on that connection. */
export function createTx(sql: postgres.ReservedSql, run: (query: Runnable) => void): Tx & { end(): void } {
  let ended = false
  let savepoints = 0
  const runUnlessEnded = (query: Runnable) => {
    if (ended) query.reject(new Error('this transaction handle has ended: await every query inside the work'))
    else run(query)
  }
  const bind = <Q>(query: Q): Q => bindHandler(query, runUnlessEnded)
  const call = (...args: Parameters<postgres.ReservedSql>): unknown => bind(sql(...args))

  const tx = call as unknown as Tx & { end(): void }
  tx.json = (value) => sql.json(value)
  tx.array = (value, type) => sql.array(value, type)
  tx.unsafe = (text: string, values: postgres.ParameterOrJSON<never>[] = []) => bind(sql.unsafe(text, values))
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

/** Makes a query run through `handler`; anything else that the driver's tag makes (identifiers, lists) stays as it is. */
export function bindHandler<Q>(query: Q, handler: (query: Runnable) => void): Q {
  if (typeof query === 'object' && query !== null && 'handler' in query) query.handler = handler
  return query
}
