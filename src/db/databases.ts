import { createClient } from './client.ts'
import { ConnectionPool, type PageHandler } from './connection.ts'
import { NoConnectionsError, UnknownParticipantError } from './errors.ts'
import { QueryPool } from './query-pool.ts'
import type { Patience } from './semaphore.ts'
import { checkParticipantName } from './transaction-name.ts'
import type { Sql, Tx } from './tx.ts'

export type { Sql } from './tx.ts'

/**
 * A database that takes part: `sql` for single statements, `statement` for those that are steps of an attempt,
 * `transaction` for several, `staging` for connections that prepare and finish. postgres.js's own `begin` is not used
 * anywhere: like a reserved connection it goes on writing to a lost one, which ends the process.
 */
export class Participant {
  readonly name: string
  readonly url: string
  /** runs single statements */
  readonly sql: Sql
  readonly staging: ConnectionPool
  readonly #queries: QueryPool
  readonly #transactions: ConnectionPool
  /** apart from the others: work may take long, and may ask for what Holdfast itself needs a transaction for */
  readonly #works: ConnectionPool
  /** apart from the others: a read may take long, and whoever reads page by page uses a transaction for what it does with a page */
  readonly #reading: ConnectionPool
  readonly limits: Limits
  #readsApart = 0
  /** the role that owns every gid here, as the installation records it; set when the schema was checked */
  ownerRole: string | undefined
  /** its schema, its name and its owner role were checked */
  checked = false

  constructor(name: string, url: string, limits: Limits) {
    checkParticipantName(name)
    this.name = name
    this.url = url
    this.limits = limits
    // In the connection's start-up packet, so that RESET ALL comes back to them. Single statements that compare and set
    // need READ COMMITTED, whatever the database or the role has as its default.
    const settings = {
      application_name: this.#applicationName,
      default_transaction_isolation: 'read committed',
    } as const
    const options = {
      connection: {
        ...settings,
        lock_timeout: limits.lockTimeoutMs,
        idle_in_transaction_session_timeout: limits.idleTimeoutMs,
      },
    }
    this.#queries = new QueryPool(url, limits.queries, limits.answerMs, { connection: settings })
    this.sql = this.#queries.sql
    this.staging = new ConnectionPool(url, limits.staging, options)
    this.#transactions = new ConnectionPool(url, limits.queries, options)
    this.#works = new ConnectionPool(url, limits.works, options)
    this.#reading = new ConnectionPool(url, limits.queries, options)
  }

  /** Runs work in a plain transaction: committed when it returns, rolled back when it throws. */
  async transaction<T>(work: (tx: Tx) => Promise<T>): Promise<T> {
    return this.#inTransaction(this.#transactions, { begin: beginText }, work)
  }

  /**
   * As `transaction`, for work that is one statement: it commits by itself, which saves a trip. The answer comes with the
   * server's ReadyForQuery, after the commit and after any notice that a standby was not waited for.
   */
  async statement<T>(query: (sql: Sql) => PromiseLike<T>): Promise<T> {
    const connection = await this.#transactions.acquire()
    const tx = connection.tx()
    try {
      return await connection.whileAlive(query(tx))
    } finally {
      tx.end()
      await this.#transactions.release(connection, true)
    }
  }

  /**
   * As `transaction`, for work of the user's. It begins with `setting`. What is done by `last` leaves in one flush with the
   * COMMIT, so it has to make a failed transaction of whatever is wrong. Throws NoConnectionsError.
   */
  async userTransaction<T>(
    { setting, last }: { setting: string; last: Last<T> },
    work: (tx: Tx) => Promise<T>,
  ): Promise<T> {
    const { works, worksWaitMs } = this.limits
    const error = () =>
      new NoConnectionsError(
        `all ${works} connections to the database ${this.name} for the work of idempotent calls were in use for ${worksWaitMs} ms; try again later. Is one called within the work of another? \`connections.idempotent\` in the config sets how many there are`,
      )
    const begin = `${beginText}; ${setting}`
    return this.#inTransaction(this.#works, { begin, last, patience: { ms: worksWaitMs, error } }, work)
  }

  /**
   * Reads of users, which may take long: in a transaction of its own, on connections that relays and decisions do not need.
   * Undefined where as many as there are read already. REPEATABLE READ: all statements see the same moment.
   */
  async readApart<T>(
    isolation: 'READ COMMITTED' | 'REPEATABLE READ READ ONLY',
    read: (tx: Tx) => Promise<T>,
  ): Promise<T | undefined> {
    if (this.#readsApart >= readsApart) return undefined
    this.#readsApart++
    try {
      const begin = `BEGIN ISOLATION LEVEL ${isolation}`
      return await this.#inTransaction(this.#reading, { begin }, read)
    } finally {
      this.#readsApart--
    }
  }

  async #inTransaction<T>(
    pool: ConnectionPool,
    { begin, last, patience }: { begin: string; last?: Last<T>; patience?: Patience },
    work: (tx: Tx) => Promise<T>,
  ): Promise<T> {
    const connection = await pool.acquire(patience)
    const tx = connection.tx()
    let clean = false
    try {
      const begun = connection.send(begin)
      begun.catch(() => undefined)
      const result = await connection.whileAlive(work(tx))
      const sent = (last?.(tx, result) ?? []).map((query) => Promise.resolve(query.then(() => undefined)))
      for (const query of sent) query.catch(() => undefined)
      // The driver sends a query one microtask after it is first waited for.
      await Promise.resolve()
      tx.end()
      const commit = connection.send('COMMIT')
      commit.catch(() => undefined)
      await begun
      await connection.whileAlive(Promise.all(sent))
      const [committed] = await commit
      clean = true
      if (committed?.command !== 'COMMIT')
        throw new Error('the transaction went on after a statement had failed')
      return result
    } catch (error) {
      tx.end()
      clean ||= await connection.send('ROLLBACK').then(
        () => true,
        () => false,
      )
      throw error
    } finally {
      await pool.release(connection, clean)
    }
  }

  /**
   * Reads the rows of a query page by page, in a read-only transaction of its own. Rejects when the connection is lost,
   * but not before a running `handle` has ended.
   */
  async readPages<Page>(text: string, pageSize: number, handler: PageHandler<Page>): Promise<void> {
    const connection = await this.#reading.acquire()
    let clean = false
    try {
      await connection.send(
        `BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; SET LOCAL work_mem = '${readingMemory}'`,
      )
      await connection.readPages(text, pageSize, handler)
    } finally {
      clean = await connection.send('ROLLBACK').then(
        () => true,
        () => false,
      )
      await this.#reading.release(connection, clean)
    }
  }

  /** At most as long as PostgreSQL's own limit of a name. */
  get #applicationName(): string {
    return `holdfast ${this.name}`.slice(0, 63)
  }

  /** Calls back at each notification, and after a lost connection, when some may have been missed; returns how to stop. */
  async listen(channel: string, onNotify: () => void): Promise<() => Promise<void>> {
    const connection = { application_name: this.#applicationName }
    const client = createClient(this.url, { max: 1, connection })
    try {
      await client.listen(channel, onNotify, onNotify)
      return () => client.end({ timeout: 1 })
    } catch (error) {
      await client.end({ timeout: 0 })
      throw error
    }
  }

  async end(): Promise<void> {
    const pools = [this.#queries, this.staging, this.#transactions, this.#works, this.#reading]
    await Promise.all(pools.map((pool) => pool.end()))
  }
}

/** Of the connections for reading, those that no relay has. */
const readsApart = 4

const beginText = 'BEGIN ISOLATION LEVEL READ COMMITTED'

/** The queries that end a transaction, before its COMMIT. */
type Last<T> = (tx: Tx, result: T) => PromiseLike<unknown>[]

/** For sorting what is read page by page; a sort that goes to disk costs half as much again. */
const readingMemory = '32MB'

/** Of each database. */
export type Limits = {
  /** connections for single statements, as many for plain transactions, and as many for reading: 4, and one for each relay */
  queries: number
  /** connections for staged transactions */
  staging: number
  /** connections for the work of idempotent calls, on the coordinator */
  works: number
  /** how long such work waits for one */
  worksWaitMs: number
  /** how long a statement waits for a lock; a deadlock over two servers is seen by nobody */
  lockTimeoutMs: number
  /** how long a single statement may take to be answered */
  answerMs: number
  /** how long work may leave its transaction idle before the server ends it */
  idleTimeoutMs: number
}

export const defaultLimits: Limits = {
  queries: 4,
  staging: 8,
  works: 10,
  worksWaitMs: 10_000,
  lockTimeoutMs: 5_000,
  answerMs: 60_000,
  idleTimeoutMs: 60_000,
}

/** The configured databases by name. `primary` is the coordinator: decisions, outbox and batches live there. */
export class Databases {
  readonly primary: Participant
  readonly #byName: ReadonlyMap<string, Participant>

  constructor(urls: Readonly<Record<string, string>>, limits: Partial<Limits> = {}) {
    const all = { ...defaultLimits, ...limits }
    const participants = Object.entries(urls).map(([name, url]) => new Participant(name, url, all))
    this.#byName = new Map(participants.map((p) => [p.name, p]))
    this.primary = this.get('primary')
  }

  get names(): string[] {
    return [...this.#byName.keys()]
  }

  get all(): Participant[] {
    return [...this.#byName.values()]
  }

  has(name: string): boolean {
    return this.#byName.has(name)
  }

  get(name: string): Participant {
    const participant = this.#byName.get(name)
    if (!participant) {
      throw new UnknownParticipantError(
        `no database named ${JSON.stringify(name)} is configured; known: ${this.names.join(', ')}. Add it to \`databases\` in the config`,
      )
    }
    return participant
  }

  async end(): Promise<void> {
    await Promise.all(this.all.map((p) => p.end()))
  }
}
