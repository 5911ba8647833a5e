import { isUtf8 } from 'node:buffer'
import type { Json } from '../../db/json.ts'
import { messageOf } from '../../db/message-of.ts'
import type { Source } from '../source.ts'
import { checkFileOptions, type FileOptions, fileSource, type Records } from './file-source.ts'
import { blocksOf, bomBytes, type OpenFile } from './open-file.ts'

/**
 * Reads a file with one JSON object or array per line, a chunk at a time. Lines end with LF or CRLF, the last one may
 * lack that; blank lines are skipped. A row's key is the number of its record, from 1, blank lines not counted.
 *
 * The file has to be whole up to its end: write it under another name and rename it. While a job is under way lines may
 * be added at its end. Throws InvalidConfigError for options that are wrong; reading throws InvalidConfigError for a
 * file that is missing, or that was replaced or truncated under way, and InvalidPayloadError with path and line for a
 * line that is too long, not UTF-8 or not JSON.
 */
export function ndjson<Row extends object = Record<string, Json>>(options: FileOptions): Source<Row> {
  const maxRecordBytes = checkFileOptions('ndjson', options)
  return fileSource(options.path, (file, offset, limit) =>
    // What a row looks like is the caller's word: the type parameter of ndjson.
    readLines(file, offset, limit, maxRecordBytes).then((records) => records as Records<Row>),
  )
}

async function readLines(
  file: OpenFile,
  offset: number,
  limit: number,
  maxRecordBytes: number,
): Promise<Records<object>> {
  const rows: object[] = []
  let end = offset
  for await (const line of linesOf(file, offset === 0 ? await bomBytes(file) : offset, maxRecordBytes)) {
    if (rows.length === limit) break
    const { row, flaw } = parseLine(line, maxRecordBytes)
    // Of a line that is too long no more was read than that.
    const flawEnd = line.bytes.length > maxRecordBytes ? undefined : line.end
    if (flaw !== undefined) return { rows, end, flaw, flawEnd }
    if (row === undefined) continue
    rows.push(row)
    end = line.end
  }
  return { rows, end }
}

/** A line with its newline, and the offset after it; of one that is too long, no more than is needed to tell that. */
type Line = { bytes: Buffer; end: number }

async function* linesOf(file: OpenFile, start: number, maxRecordBytes: number): AsyncGenerator<Line> {
  let rest: Buffer = Buffer.alloc(0)
  let end = start
  for await (const block of blocksOf(file, start)) {
    const bytes = rest.length === 0 ? block : Buffer.concat([rest, block])
    let from = 0
    for (let to = lineEnd(bytes, from); to > 0; to = lineEnd(bytes, from)) {
      end += to - from
      yield { bytes: bytes.subarray(from, to), end }
      from = to
    }
    rest = bytes.subarray(from)
    if (rest.length > maxRecordBytes) break
  }
  if (rest.length > 0) yield { bytes: rest, end: end + rest.length }
}

/** After the next newline, or 0. */
const lineEnd = (bytes: Buffer, from: number) => bytes.indexOf(0x0a, from) + 1

function parseLine({ bytes }: Line, maxRecordBytes: number): { row?: object; flaw?: string } {
  if (bytes.length > maxRecordBytes)
    return { flaw: `is longer than ${maxRecordBytes} bytes (maxRecordBytes)` }
  if (!isUtf8(bytes)) return { flaw: 'is not UTF-8: convert the file' }
  const text = bytes.toString()
  if (text.trim() === '') return {}
  try {
    const row: unknown = JSON.parse(text)
    if (typeof row === 'object' && row !== null) return { row }
    return { flaw: `is JSON but neither an object nor an array: ${text.trim().slice(0, 40)}` }
  } catch (error) {
    return { flaw: `is not JSON: ${messageOf(error)}` }
  }
}
