import { resolve } from 'node:path'
import { InvalidConfigError, InvalidPayloadError } from '../../db/errors.ts'
import type { Source } from '../source.ts'
import { checkSameFile, fileCursorAt, parseFileCursor } from './file-cursor.ts'
import { lineAt, type OpenFile, withFile } from './open-file.ts'

export type FileOptions = {
  /** of a UTF-8 file, the same on every host where a worker of the batch runs; relative to the working directory */
  path: string
  /** the longest record there may be, its newline included; default 1 MiB. Longer ones are an error: memory stays bounded */
  maxRecordBytes?: number
}

/**
 * Whole records that follow each other from an offset on: at most `limit`, fewer at the end of the file or before a
 * record with a flaw. `end` is the offset in bytes after the last of them, `flawEnd` the one after the flawed record,
 * where it can be told.
 */
export type Records<Row> = {
  rows: Row[]
  end: number
  flaw?: string | undefined
  flawEnd?: number | undefined
}

/** Reads records from an offset where one begins; 0 is the start of the file, with byte order mark and header. */
export type ReadRecords<Row> = (file: OpenFile, offset: number, limit: number) => Promise<Records<Row>>

/**
 * A source of a file, in any format that can be read from an offset. Each chunk opens the file, reads from its offset
 * and closes it: nothing is left open when a job ends, whichever way, and a page cache makes opening again cheap.
 *
 * The records before a flawed one are a chunk of their own, a short one. The flawed one is a chunk as well, so that a
 * batch can set it aside; where its end cannot be told, the read throws. Either way the error is InvalidPayloadError with
 * the path and the line, and the position right before that record.
 */
export function fileSource<Row>(path: string, readRecords: ReadRecords<Row>): Source<Row> {
  const absolute = resolve(path)
  return {
    read: (_tx, stored, limit) =>
      withFile(absolute, async (file) => {
        const from = parseFileCursor(stored)
        await checkSameFile(file, from)
        const { rows, end, flaw, flawEnd } = await readRecords(file, from.offset, limit)
        if (flaw !== undefined && rows.length === 0) {
          const record = from.record + 1
          const unreadable = await flawed(file, end, record, flaw)
          if (flawEnd === undefined) throw unreadable
          const cursor = await fileCursorAt(file, flawEnd, record)
          return { rows, keys: [record], cursor, last: flawEnd === file.size, unreadable }
        }
        const cursor = await fileCursorAt(file, end, from.record + rows.length)
        const last = flaw === undefined && (rows.length < limit || end === file.size)
        return { rows, keys: rows.map((_row, i) => from.record + i + 1), cursor, last }
      }),
  }
}

/** What is wrong with the record that begins at the offset, or after blank lines there; record 0 is the header. */
export async function flawed(
  file: OpenFile,
  offset: number,
  record: number,
  flaw: string,
): Promise<InvalidPayloadError> {
  const what = record === 0 ? 'the header' : `record ${record}`
  const advice =
    'correct it there without changing what stands before it; where that makes the file shorter, add blank lines at its end'
  return new InvalidPayloadError(
    `${file.path}, line ${await lineAt(file, offset)}: ${what} ${flaw}; ${advice}`,
  )
}

/** Throws InvalidConfigError that lists everything wrong, `more` included; returns the limit that is in force. */
export function checkFileOptions(source: string, options: FileOptions, more: readonly string[] = []): number {
  const { path, maxRecordBytes = 1024 * 1024 } = options
  const problems = [
    ...(typeof path === 'string' && path !== '' ? [] : ['path is missing']),
    ...(Number.isSafeInteger(maxRecordBytes) && maxRecordBytes > 0
      ? []
      : ['maxRecordBytes is a whole number of bytes, at least 1']),
    ...more,
  ]
  if (problems.length > 0) throw new InvalidConfigError(problems.map((p) => `${source}: ${p}`))
  return maxRecordBytes
}
