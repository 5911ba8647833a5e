import { type Json, sameJson } from '../db/json.ts'
import { type BatchWork, sourceDatabase } from './batch-step.ts'
import type { AskVersion, Chunk } from './source.ts'

/** What was read ahead, and how to ask whether it would be read again just so; without `version` it is taken for it. */
export type Ahead = {
  chunk: Chunk<object>
  /** how many rows were asked for */
  size: number
  version?: { read: string; ask: AskVersion }
}

type Read = { cursor: Json; until: Json; at: number; ahead: Promise<Ahead | undefined> }

/** What nobody asks for again is read anew after that: the job may have been held meanwhile. */
const keptMs = 1_000

/** Of a source that somebody changes all the time, the most chunks in a row that are not read ahead. */
const longestRest = 64

/**
 * Reads the next chunk of a range while the one before it is processed and committed, in a transaction of its own. What was
 * read for another position or end is dropped, and so is a read that failed: the chunk then reads for itself.
 *
 * The chunk before it may change what comes after it, and so may anybody else. So a source has to tell whether it would
 * be read again just so, unless the definition promises it; a source that cannot is not read ahead. What turns out to have
 * changed was read and processed in vain, and the next chunks are not read ahead.
 */
export class ReadAhead {
  readonly #work: Pick<BatchWork, 'ctx' | 'source'>
  readonly #promised: boolean
  #read: Read | undefined
  #resting = 0
  #rest = 0

  constructor(work: Pick<BatchWork, 'ctx' | 'source'>, promised: boolean) {
    this.#work = work
    this.#promised = promised
  }

  start(cursor: Json, size: number, until: Json): void {
    if (this.#resting > 0) {
      this.#resting--
      return
    }
    const { ctx, source } = this.#work
    if (!this.#promised && source.version?.of !== source.read) return
    const ahead = this.#begin(cursor, size, until).catch((err: unknown) => {
      ctx.log.debug({ err }, 'not read ahead')
      this.changed()
      return undefined
    })
    this.#read = { cursor, until, at: performance.now(), ahead }
  }

  async take(cursor: Json, until: Json): Promise<Ahead | undefined> {
    const read = this.#read
    this.#read = undefined
    if (!read || (this.#promised && performance.now() - read.at > keptMs)) return undefined
    if (!sameJson(read.cursor, cursor) || !sameJson(read.until, until)) return undefined
    return read.ahead
  }

  /** Waits for a read that nobody has taken. */
  async end(): Promise<void> {
    await this.#read?.ahead
  }

  /** What was taken was still so. */
  held(): void {
    this.#rest = 0
  }

  /** What was taken had changed, or could not be read. */
  changed(): void {
    this.#rest = Math.min(longestRest, 2 * this.#rest || 1)
    this.#resting = this.#rest
  }

  async #begin(cursor: Json, size: number, until: Json): Promise<Ahead | undefined> {
    const { source } = this.#work
    const database = sourceDatabase(this.#work)
    if (this.#promised) {
      const chunk = await database.readApart('READ COMMITTED', (tx) => source.read(tx, cursor, size, until))
      return chunk && { size, chunk }
    }
    const ask = await source.version?.ask(database.sql, cursor, size, until)
    if (!ask) return undefined
    // Of one moment, or the version would not be that of what was read.
    const read = await database.readApart('REPEATABLE READ READ ONLY', (tx) =>
      Promise.all([ask(tx), source.read(tx, cursor, size, until)]),
    )
    if (!read) return undefined
    const [version, chunk] = read
    return { size, chunk, version: { read: version, ask } }
  }
}
