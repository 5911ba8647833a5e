import type postgres from 'postgres'
import type { Statement } from './statements.ts'

/**
 * A query of postgres.js before it is sent, as far as it is needed to answer it without a server. These are the driver's
 * internals; the tests of the fake pin them.
 */
export type DriverQuery = {
  readonly strings: readonly string[]
  readonly args: readonly unknown[]
  /** false for `unsafe`, whose arguments belong to the $1, $2, … in its text */
  readonly tagged: boolean
  readonly isRaw?: true | 'values'
  readonly onlyDescribe?: boolean
  /** the server is at it; an iterating caller ends where this is false */
  active: boolean
  readonly streaming?: boolean
  readonly cursorRows?: number
  readonly cursorFn?: (rows: readonly object[]) => unknown
  readonly forEachFn?: (row: object, result: object) => void
  resolve(result: unknown): void
  reject(error: Error): void
}

type Sql = postgres.ReservedSql
type Builder = { build(before: string, values: unknown[], types: unknown[], options: unknown): string }

/** The text and the values that would be sent. */
export function render(sql: Sql, query: DriverQuery): Statement {
  const values: unknown[] = []
  const text = query.tagged ? renderTag(sql, query, values) : query.strings.join('')
  if (!query.tagged) values.push(...query.args)
  const { constructor: Parameter } = sql.json(null)
  const plain = values.map((value) => {
    if (value === undefined) throw undefinedValue()
    // `raw` is what a parameter was made of, where the maker kept it.
    if (!(value instanceof Parameter)) return value
    const parameter: { raw?: unknown; value?: unknown } = value
    return 'raw' in parameter ? parameter.raw : parameter.value
  })
  return { text, values: plain }
}

function renderTag(sql: Sql, query: DriverQuery, values: unknown[]): string {
  const { constructor: Helper } = sql([])
  const { constructor: Identifier } = sql('name')
  const isQuery = (value: unknown): value is DriverQuery =>
    value instanceof Promise && 'strings' in value && 'args' in value
  let text = query.strings[0] ?? ''
  for (const [i, value] of query.args.entries()) {
    if (isQuery(value)) text += renderTag(sql, value, values)
    else if (Array.isArray(value) && isQuery(value[0])) {
      text += value.map((fragment) => renderTag(sql, fragment as DriverQuery, values)).join(' ')
    } else if (value instanceof Identifier) text += (value as unknown as { value: string }).value
    else if (value instanceof Helper) {
      // The driver numbers $1, $2, … by the list of types, which has to be as long as the values.
      text += (value as unknown as Builder).build(text, values, [...values], sql.options)
    } else text += `$${values.push(value)}`
    text += query.strings[i + 1] ?? ''
  }
  return text
}

/** Answers a query as the driver would: with rows, rows as arrays, page by page, or row by row. */
export async function deliver(
  sql: Sql,
  query: DriverQuery,
  rows: readonly object[],
  text: string,
): Promise<void> {
  if (query.onlyDescribe || query.streaming || query.isRaw === true) {
    throw new Error(
      'a fake transaction has no types, no COPY and no raw rows; test this in a sandboxDatabase',
    )
  }
  const result = toResult(query.isRaw === 'values' ? rows.map((row) => Object.values(row)) : rows, text)
  if (query.forEachFn) for (const row of rows) query.forEachFn(row, result)
  const pageSize = query.cursorRows ?? 1
  query.active = true
  // An iterating caller puts another function there for each page.
  for (let i = 0; query.cursorFn && i < rows.length; i += pageSize) {
    if ((await query.cursorFn(rows.slice(i, i + pageSize))) === sql.CLOSE) break
  }
  query.resolve(query.forEachFn || query.cursorFn ? toResult([], text) : result)
}

function toResult(rows: readonly object[], text: string): object[] {
  const command = /^\s*(\w+)/.exec(text)?.[1]?.toUpperCase() ?? ''
  const columns = Object.keys(rows[0] ?? {}).map((name) => ({ name, type: 0 }))
  const meta = { count: rows.length, command, columns, state: { status: 'idle', pid: 0, secret: 0 } }
  const list = [...rows]
  for (const [key, value] of Object.entries(meta)) Object.defineProperty(list, key, { value })
  return list
}

function undefinedValue(): Error {
  return Object.assign(new Error('UNDEFINED_VALUE: Undefined values are not allowed'), {
    code: 'UNDEFINED_VALUE',
  })
}
