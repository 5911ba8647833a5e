import type { Source } from '../source.ts'
import { checkFileOptions, type FileOptions, fileSource, flawed, type Records } from './file-source.ts'
import { bomBytes, isUtf8At, type OpenFile } from './open-file.ts'
import { type CsvRecord, parseCsv } from './parse-csv.ts'

export type CsvOptions = FileOptions & {
  /** what stands between two values; default `,` */
  delimiter?: string
  /** names of the values, for a file without header line; default: the first line names them */
  columns?: readonly string[]
}

/**
 * Reads a CSV file (RFC 4180) a chunk at a time; each row is an object of strings, named by the header line or by
 * `columns`. Lines end with LF or CRLF, the last one may lack that; blank lines are skipped, so that in a file of one
 * column an empty value is written `""`. A row's key is the number of its record, from 1, the header not counted.
 *
 * The file has to be whole up to its end: write it under another name and rename it. While a job is under way lines may
 * be added at its end. Throws InvalidConfigError for options that are wrong; reading throws InvalidConfigError for a
 * file that is missing, or that was replaced or truncated under way, and InvalidPayloadError with path and line for a
 * record that is too long, not UTF-8 or not CSV, or has more or fewer values than there are columns.
 */
export function csv<Row extends object = Record<string, string>>(options: CsvOptions): Source<Row> {
  const { delimiter = ',', columns } = options
  const problems = [
    ...(/^[^"\r\n]+$/.test(delimiter)
      ? []
      : ['delimiter is at least one character, no quote and no newline']),
    ...(columns === undefined ? [] : problemsOfColumns(columns)),
  ]
  const maxRecordBytes = checkFileOptions('csv', options, problems)
  const parse = (file: OpenFile, start: number, limit: number) =>
    parseCsv(file, start, { delimiter, limit, maxRecordBytes })
  return fileSource(options.path, async (file, offset, limit) => {
    const header = columns ? { names: columns, end: 0 } : await readHeader(file, parse)
    if (!header) return { rows: [], end: offset }
    const begin = Math.max(offset, header.end)
    const { records, flaw } = await parse(file, begin === 0 ? await bomBytes(file) : begin, limit)
    // What a row looks like is the caller's word: the type parameter of csv.
    return (await toRows(file, records, header.names, begin, flaw)) as Records<Row>
  })
}

const notUtf8 = 'is not UTF-8: convert the file'

/** Read again for each chunk, which costs one block: a cursor that carried the names would be stored with every chunk. */
async function readHeader(
  file: OpenFile,
  parse: (
    file: OpenFile,
    start: number,
    limit: number,
  ) => Promise<{ records: CsvRecord[]; flaw?: string | undefined }>,
): Promise<{ names: readonly string[]; end: number } | undefined> {
  const { records, flaw } = await parse(file, await bomBytes(file), 1)
  const [header] = records
  if (!header) {
    if (flaw !== undefined) throw await flawed(file, 0, 0, flaw)
    return undefined
  }
  if (!(await isUtf8At(file, 0, header.end))) throw await flawed(file, 0, 0, notUtf8)
  const problems = problemsOfColumns(header.values)
  if (problems.length > 0) throw await flawed(file, 0, 0, `is of no use: ${problems.join(', ')}`)
  return { names: header.values, end: header.end }
}

function problemsOfColumns(columns: readonly string[]): string[] {
  const twice = columns.filter((name, i) => columns.indexOf(name) !== i)
  return [
    ...(columns.length > 0 && columns.every((name) => typeof name === 'string' && name !== '')
      ? []
      : ['a column has no name']),
    ...(columns.includes('__proto__') ? ['no column can be named __proto__'] : []),
    ...(twice.length === 0 ? [] : [`more than one column is named ${[...new Set(twice)].join(', ')}`]),
  ]
}

async function toRows(
  file: OpenFile,
  records: readonly CsvRecord[],
  names: readonly string[],
  begin: number,
  flaw: string | undefined,
): Promise<Records<Record<string, string>>> {
  const rows: Record<string, string>[] = []
  let end = begin
  for (const record of records) {
    const flaw = await flawOf(file, record, names, end)
    if (flaw !== undefined) return { rows, end, flaw, flawEnd: record.end }
    rows.push(toRow(names, record.values))
    end = record.end
  }
  return { rows, end, flaw }
}

function toRow(names: readonly string[], values: readonly string[]): Record<string, string> {
  const row: Record<string, string> = {}
  for (const [i, name] of names.entries()) row[name] = values[i] ?? ''
  return row
}

async function flawOf(
  file: OpenFile,
  { values, end }: CsvRecord,
  names: readonly string[],
  start: number,
): Promise<string | undefined> {
  if (values.length !== names.length) return `has ${values.length} values for ${names.length} columns`
  // What is not UTF-8 was decoded as U+FFFD; so is the character itself, where the file has it.
  if (values.some((value) => value.includes('\uFFFD')) && !(await isUtf8At(file, start, end))) {
    return notUtf8
  }
  return undefined
}
