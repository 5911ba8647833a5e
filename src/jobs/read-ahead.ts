import { type Json, sameJson } from '../db/json.ts'
import { type BatchWork, sourceDatabase } from './batch-step.ts'
import type { Chunk } from './source.ts'

type Read = { cursor: Json; size: number; until: Json; at: number; chunk: Promise<Chunk<object> | undefined> }

/** What was read longer ago is read again: the job may have been held meanwhile. */
const keptMs = 1_000

/**
 * Reads the next chunk of a range while the one before it is processed and committed, in a transaction of its own. What
 * was read for another position, size or end is dropped, and so is a read that failed: the chunk then reads for itself.
 */
export class ReadAhead {
  readonly #work: Pick<BatchWork, 'ctx' | 'source'>
  #read: Read | undefined

  constructor(work: Pick<BatchWork, 'ctx' | 'source'>) {
    this.#work = work
  }

  start(cursor: Json, size: number, until: Json): void {
    const { ctx, source } = this.#work
    const chunk = sourceDatabase(this.#work)
      .transaction((tx) => source.read(tx, cursor, size, until))
      .catch((err: unknown) => {
        ctx.log.debug({ err }, 'not read ahead')
        return undefined
      })
    this.#read = { cursor, size, until, at: performance.now(), chunk }
  }

  async take(cursor: Json, size: number, until: Json): Promise<Chunk<object> | undefined> {
    const read = this.#read
    this.#read = undefined
    if (!read || performance.now() - read.at > keptMs) return undefined
    if (read.size !== size || !sameJson(read.cursor, cursor) || !sameJson(read.until, until)) return undefined
    return read.chunk
  }
}
