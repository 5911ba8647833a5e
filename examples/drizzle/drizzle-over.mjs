import { drizzle } from 'drizzle-orm/pg-proxy'
import pg from 'pg'

/**
 * A Drizzle over Holdfast's `tx`: what it writes is staged, committed and rolled back with the rest of the work. Rows are
 * those of Drizzle over node-postgres. It has no `transaction()` (`tx.savepoint` is for a part that may fail), and a
 * statement without `returning()` does not tell how many rows it changed.
 */
export function drizzleOver(tx, config) {
  return drizzle(async (text, params, method) => {
    const values = params.map((value) => parameter(tx, value))
    const result = await tx.unsafe(text, values).raw()
    const columns = result.columns ?? []
    const rows = result.map((row) => row.map((bytes, i) => bytes && read(columns[i].type, String(bytes))))
    if (method === 'all') return { rows }
    return { rows: rows.map((row) => Object.fromEntries(row.map((value, i) => [columns[i].name, value]))) }
  }, config)
}

/** Dates, times, intervals and lists of them: Drizzle reads these itself. */
const readByDrizzle = new Set([1082, 1114, 1182, 1184, 1186, 1115, 1185, 1187, 1231])

const read = (type, text) => (readByDrizzle.has(type) ? text : pg.types.getTypeParser(type)(text))

/** Drizzle has made text of the value; told the type of the column, postgres.js would encode JSON and dates once more. */
const unknownType = 705

function parameter(tx, value) {
  if (value === null || value === undefined) return null
  return Object.assign(tx.json(textOf(value)), { type: unknownType })
}

function textOf(value) {
  if (ArrayBuffer.isView(value)) return `\\x${Buffer.from(value).toString('hex')}`
  return value instanceof Date ? value.toISOString() : String(value)
}
