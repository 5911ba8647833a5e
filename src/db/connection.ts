import type postgres from 'postgres'
import { createClient } from './client.ts'
import { isUnreplicated } from './replication.ts'
import { type Patience, Semaphore } from './semaphore.ts'
import type { Runnable, Tx } from './tx.ts'
import { bindHandler, createTx, whenSettled } from './tx.ts'
import { within } from './within.ts'

const openMs = 15_000

export type ConnectionOptions = postgres.Options<Record<string, never>>

export type Result = postgres.RowList<postgres.Row[]>

export type PageHandler<Page> = {
  /** makes of the rows what `handle` needs, as soon as they are there */
  arrived(rows: postgres.Row[]): Page
  /** `readAhead` asks for the next page now; without it that happens when `handle` has ended */
  handle(page: Page, readAhead: () => void): Promise<'next' | 'stop'>
}

/**
 * One physical connection for two-phase work.
 *
 * postgres.js never moves a *reserved* connection to another socket, which is what staged work needs, but a write on
 * a reserved connection whose server went away throws outside every promise and ends the process (porsager/postgres
 * #1208), and a query caught between the socket's error and its close is never settled. So each Connection is a
 * client of its own with one connection: its death is known at once, nothing is written to it any more, and whoever
 * waits for it is told.
 */
export class Connection {
  #dead = false
  readonly #waiting = new Set<(error: Error) => void>()
  readonly #running = new Set<Runnable>()
  /** the query that the driver is being given at this moment */
  #handing: Runnable | undefined
  readonly #sql: postgres.Sql
  readonly #reserved: postgres.ReservedSql
  /** Runs a query, and rejects it when the connection ends first. To be called when the query is first awaited. */
  readonly run: (query: Runnable) => void

  private constructor(sql: postgres.Sql, reserved: postgres.ReservedSql) {
    this.#sql = sql
    this.#reserved = reserved
    const { handler } = reserved.unsafe('') as unknown as { handler(this: void, query: unknown): void }
    this.run = (query) => {
      if (this.#dead) {
        query.reject(connectionClosed())
        return
      }
      this.#running.add(query)
      whenSettled(query, () => this.#running.delete(query))
      const { reject } = query
      query.reject = (error) => {
        if (this.#handing === undefined || this.#handing === query) reject(error)
        else this.#unsendable(this.#handing, error)
      }
      this.#handing = query
      handler(query)
      this.#handing = undefined
    }
  }

  static async open(url: string, options: ConnectionOptions): Promise<Connection> {
    let connection: Connection | undefined
    const sql = createClient(url, {
      ...options,
      max: 1,
      idle_timeout: 0,
      max_lifetime: null,
      onclose: () => {
        if (connection) connection.#die()
      },
      onnotice: (notice) => {
        if (connection && isUnreplicated(notice)) connection.#unreplicated()
      },
    })
    try {
      // The driver connects again and again where a proxy accepts and closes: the whole has a limit of its own.
      connection = new Connection(sql, await within(openMs, 'connecting', reserve(sql)))
      return connection
    } catch (error) {
      await sql.end({ timeout: 0 })
      throw error
    }
  }

  get dead(): boolean {
    return this.#dead
  }

  /** Waits for something that depends on this connection; rejects when the connection ends first. */
  whileAlive<T>(promise: PromiseLike<T>): Promise<T> {
    // Not Promise.race with one long-lived promise: each race would leave its callbacks there for ever.
    return new Promise<T>((resolve, reject) => {
      const lose = (error: Error) => {
        this.#waiting.delete(lose)
        reject(error)
      }
      if (this.#dead) lose(connectionClosed())
      else this.#waiting.add(lose)
      promise.then((value) => {
        this.#waiting.delete(lose)
        resolve(value)
      }, lose)
    })
  }

  /**
   * Sends each text as a message of its own, all in one flush, and settles all. A text may hold several statements; the
   * server leaves out the rest of a text after an error in it, and goes on with the next text. postgres.js makes a new
   * result at each statement that returns rows and lets the others write their command tag into the one before, so the
   * last result of a text has its last tag.
   */
  async flush(texts: readonly string[]): Promise<PromiseSettledResult<Result[]>[]> {
    const queries = texts.map((text) => bindHandler(this.#reserved.unsafe(text), this.run).then(toResults))
    return this.whileAlive(Promise.allSettled(queries))
  }

  /** Sends one text of statements by the simple protocol; see flush. */
  async send(text: string): Promise<Result[]> {
    return this.whileAlive(bindHandler(this.#reserved.unsafe(text), this.run).then(toResults))
  }

  /** The handle for work inside a transaction that was begun on this connection. */
  tx(): Tx & { end(): void } {
    return createTx(this.#reserved, this.run)
  }

  /**
   * Reads the rows of a query page by page through a portal. Never leaves before a running `handle` has ended, whatever
   * happens to the connection: it may be using other ones.
   */
  async readPages<Page>(text: string, pageSize: number, handler: PageHandler<Page>): Promise<void> {
    const query = bindHandler(this.#reserved.unsafe<postgres.Row[]>(text), this.run)
    const iterator = query.cursor(pageSize)[Symbol.asyncIterator]()
    let next: Promise<Page | undefined> | undefined
    const readAhead = () => {
      if (next) return
      // The driver answers some calls without a promise.
      const answer = this.whileAlive(Promise.resolve(iterator.next()))
      next = answer.then(({ done, value }) => (done === true ? undefined : handler.arrived(value)))
      next.catch(() => undefined)
    }
    try {
      for (;;) {
        readAhead()
        const page = await next
        if (page === undefined) return
        next = undefined
        if ((await handler.handle(page, readAhead)) === 'stop') return
      }
    } finally {
      // The portal is closed before the transaction can end; on a dead connection there is nothing to close, and the
      // driver would write to no socket.
      await next?.catch(() => undefined)
      if (!this.#dead) await iterator.return?.()
    }
  }

  async end(): Promise<void> {
    await this.#giveUp()
  }

  /**
   * A query that the driver could not put into messages (an undefined value, JSON with a bigint in it) behind one that waits
   * for its answer: the driver blames the one that waits, and takes the next answer for that of the query it never sent.
   */
  #unsendable(query: Runnable, error: Error): void {
    this.#handing = undefined
    query.reject(error)
    void this.#giveUp(connectionClosed(), error)
  }

  /** Nobody can tell which of the statements on their way it was. */
  #unreplicated(): void {
    void this.#giveUp(
      lost(
        'UNREPLICATED',
        'the wait for a synchronous standby was cancelled: what survives a failover is unknown',
      ),
    )
  }

  async #giveUp(error?: Error, toWaiting?: Error): Promise<void> {
    this.#die(error, toWaiting)
    await this.#sql.end({ timeout: 0 })
  }

  /** `toWaiting`: what those are told who have the connection for themselves. */
  #die(error = connectionClosed(), toWaiting = error): void {
    this.#dead = true
    for (const lose of this.#waiting) lose(toWaiting)
    for (const query of this.#running) query.reject(error)
  }
}

function connectionClosed(): Error {
  return lost('CONNECTION_CLOSED', 'the database connection was closed')
}

/** An error with the code of a lost connection (src/db/sqlstate.ts). */
export function lost(code: string, message: string): Error {
  return Object.assign(new Error(message), { code })
}

/** A single statement answers with its own result, several with an array of them. */
function toResults(answer: unknown): Result[] {
  return Array.isArray(answer) && 'command' in answer ? [answer as Result] : (answer as Result[])
}

/** A reservation that has to open its connection first is never answered when array types are not fetched. */
async function reserve(sql: postgres.Sql): Promise<postgres.ReservedSql> {
  await sql.unsafe('SELECT 1')
  return sql.reserve()
}

/** A bounded set of Connections, opened when needed and kept for reuse; those that died are forgotten. */
export class ConnectionPool {
  readonly #url: string
  readonly #options: ConnectionOptions
  readonly #idle: Connection[] = []
  readonly #turns: Semaphore
  #ended = false

  constructor(url: string, max: number, options: ConnectionOptions) {
    this.#url = url
    this.#turns = new Semaphore(max)
    this.#options = options
  }

  /** Waits for its turn, with `patience` at most so long. */
  async acquire(patience?: Patience): Promise<Connection> {
    await this.#turns.enter(patience)
    try {
      if (this.#ended) throw lost('CONNECTION_ENDED', 'the connection pool was closed')
      for (let idle = this.#idle.pop(); idle; idle = this.#idle.pop()) if (!idle.dead) return idle
      return await Connection.open(this.#url, this.#options)
    } catch (error) {
      this.#turns.leave()
      throw error
    }
  }

  /** Gives a connection back; `clean` says that no transaction is open on it, otherwise it is closed. */
  async release(connection: Connection, clean: boolean): Promise<void> {
    const keep = clean && !connection.dead && !this.#ended
    if (keep) this.#idle.push(connection)
    this.#turns.leave()
    if (!keep) await connection.end()
  }

  /** Whoever waits is told. */
  async end(): Promise<void> {
    this.#ended = true
    this.#turns.resize(Number.POSITIVE_INFINITY)
    await Promise.all(this.#idle.splice(0).map((connection) => connection.end()))
  }
}
