import { CsvError, type Options, Parser } from 'csv-parse'
import { blocksOf, type OpenFile } from './open-file.ts'

/** The values of a record, and the offset in bytes after its newline. */
export type CsvRecord = { values: string[]; end: number }

export type CsvFormat = { delimiter: string; limit: number; maxRecordBytes: number }

/**
 * At most `limit` records from the offset on, where one begins. `flaw` tells what is wrong with the record after them,
 * if there is one. The parser looks at nothing beyond the limit.
 */
export async function parseCsv(
  file: OpenFile,
  start: number,
  { delimiter, limit, maxRecordBytes }: CsvFormat,
): Promise<{ records: CsvRecord[]; flaw?: string | undefined }> {
  const parser = new CollectingParser(start, {
    delimiter,
    // Not found out from the text: that could end differently where reading resumes.
    record_delimiter: ['\r\n', '\n'],
    skip_empty_lines: true,
    relax_column_count: true,
    to: limit,
  })
  const { records } = parser
  const flaw = await feed(parser, file, start, (read) => {
    if (records.length === limit) return 'enough'
    return read - (records.at(-1)?.end ?? start) > maxRecordBytes + lookAheadBytes ? 'too long' : 'more'
  })
  const long = records.findIndex(({ end }, i) => end - (records[i - 1]?.end ?? start) > maxRecordBytes)
  if (long < 0 && flaw !== 'too long') return { records, flaw }
  const tooLong = `is longer than ${maxRecordBytes} bytes (maxRecordBytes), or a quote in it is never closed`
  return { records: long < 0 ? records : records.slice(0, long), flaw: tooLong }
}

/**
 * Keeps the records instead of handing them on as a stream, which would drop those that nobody has taken from it yet
 * when a later one has a flaw. (The parser's option `on_record` would do, at twice the time.)
 */
class CollectingParser extends Parser {
  readonly records: CsvRecord[] = []
  readonly #start: number

  constructor(start: number, options: Options) {
    super(options)
    this.#start = start
  }

  override push(values: string[] | null): boolean {
    if (values === null) return super.push(null)
    this.records.push({ values, end: this.#start + this.info.bytes })
    return true
  }
}

/** More than the parser waits for before it decides what a byte means, so that its last record may not be out yet. */
const lookAheadBytes = 64

/** Feeds the parser to the end of the file, or until `after` a block it is told to stop; returns what went wrong. */
async function feed(
  parser: Parser,
  file: OpenFile,
  start: number,
  after: (read: number) => 'enough' | 'too long' | 'more',
): Promise<string | undefined> {
  // Each write reports its own error; without a listener it would end the process as well.
  parser.on('error', () => {})
  try {
    let read = start
    for await (const block of blocksOf(file, start)) {
      await settled((done) => parser.write(block, done))
      read += block.length
      const state = after(read)
      if (state !== 'more') return state === 'enough' ? undefined : state
    }
    await settled((done) => parser.end(done))
    return undefined
  } catch (error) {
    if (error instanceof CsvError) return flaws[error.code] ?? error.message
    throw error
  } finally {
    parser.destroy()
  }
}

const flaws: Readonly<Record<string, string>> = {
  CSV_QUOTE_NOT_CLOSED: 'has a quote that is never closed',
  CSV_INVALID_CLOSING_QUOTE:
    'has text after a closing quote (a quote inside a value in quotes is written twice)',
  INVALID_OPENING_QUOTE: 'has a quote inside a value that is not in quotes',
}

function settled(act: (done: (error?: Error | null) => void) => void): Promise<void> {
  return new Promise((resolve, reject) => act((error) => (error ? reject(error) : resolve())))
}
