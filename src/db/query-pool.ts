import { createClient } from './client.ts'
import { Connection, type ConnectionOptions, lost } from './connection.ts'
import { createSql, type Runnable, type Sql, whenSettled } from './tx.ts'
import { within } from './within.ts'

/**
 * Single queries, each on whichever connection has the least to do; several wait in one connection's pipeline.
 *
 * Not postgres.js's own pool: that one never settles a query which it is given between the error and the close of a
 * connection. It stays in the connection's books, is never sent, and soon everything behind it waits too. A Connection is
 * given up as a whole when its socket ends.
 */
export class QueryPool {
  readonly sql: Sql
  readonly #url: string
  readonly #max: number
  readonly #answerMs: number
  readonly #options: ConnectionOptions
  readonly #lines = new Set<Line>()
  #ended = false

  /** `answerMs`: how long an answer may take. Whoever waits is told, and the connection is given up. */
  constructor(url: string, max: number, answerMs: number, options: ConnectionOptions) {
    this.#url = url
    this.#max = max
    this.#answerMs = answerMs
    this.#options = options
    this.sql = createSql(builder, (query) => this.#run(query))
  }

  /** Waits a moment for the answers that are still to come. */
  async end(): Promise<void> {
    this.#ended = true
    await within(closeMs, 'closing', Promise.all(Array.from(this.#lines, idle))).catch(() => undefined)
    await Promise.all(Array.from(this.#lines, (line) => this.#giveUp(line)))
  }

  #run(query: Runnable): void {
    if (this.#ended) {
      query.reject(lost('CONNECTION_ENDED', 'the database was closed'))
      return
    }
    const line = this.#leastBusy()
    line.load++
    const timer = setTimeout(() => {
      query.reject(lost('ETIMEDOUT', `the database did not answer within ${this.#answerMs} ms`))
      void this.#giveUp(line)
    }, this.#answerMs)
    whenSettled(query, () => {
      clearTimeout(timer)
      line.load--
      if (line.load === 0) line.idle?.()
    })
    // Not always by way of the promise: what is given in one go is to be written in one go.
    if (line.connection) line.connection.run(query)
    else {
      line.opening.then(
        (connection) => connection.run(query),
        (error: Error) => query.reject(error),
      )
    }
  }

  #leastBusy(): Line {
    let least: Line | undefined
    for (const line of this.#lines) {
      if (line.connection?.dead === true) this.#lines.delete(line)
      else if (!least || line.load < least.load) least = line
    }
    if (least && (least.load === 0 || this.#lines.size >= this.#max)) return least
    return this.#open()
  }

  #open(): Line {
    const line: Line = { opening: Connection.open(this.#url, this.#options), load: 0 }
    this.#lines.add(line)
    line.opening.then(
      (connection) => {
        line.connection = connection
      },
      () => this.#lines.delete(line),
    )
    return line
  }

  async #giveUp(line: Line): Promise<void> {
    this.#lines.delete(line)
    // What could not be opened has told those who waited for it.
    const connection = await line.opening.catch(() => undefined)
    await connection?.end()
  }
}

const closeMs = 5_000

type Line = {
  readonly opening: Promise<Connection>
  /** once it is open */
  connection?: Connection
  /** how many queries wait for their answer */
  load: number
  /** called when there are none any more */
  idle?: () => void
}

async function idle(line: Line): Promise<void> {
  if (line.load > 0) await new Promise<void>((resolve) => Object.assign(line, { idle: resolve }))
}

/** Makes queries, and never runs one. */
const builder = createClient('postgres://nowhere?sslmode=disable', { max: 1 })
