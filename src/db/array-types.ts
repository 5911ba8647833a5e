import type postgres from 'postgres'
import { parse } from 'postgres-array'

/**
 * Array types for postgres.js, by their fixed oids (pg_type.dat). The driver would otherwise fetch them at each connect,
 * and a connection that is cut during that query rejects where nobody can catch it, which ends the process.
 *
 * Arrays of types that a database defines itself (enums) are not among them: pass them as text[] and cast.
 */
const text = (value: string) => value
const date = (value: string) => new Date(value)
const json = (value: string) => JSON.parse(value) as unknown

const elements: readonly (readonly [
  name: string,
  array: number,
  element: number,
  parse: (value: string) => unknown,
])[] = [
  ['bool', 1000, 16, (value) => value === 't'],
  ['bytea', 1001, 17, (value) => Buffer.from(value.slice(2), 'hex')],
  ['name', 1003, 19, text],
  ['int2', 1005, 21, Number],
  ['int4', 1007, 23, Number],
  ['text', 1009, 25, text],
  ['xid', 1011, 28, text],
  ['bpchar', 1014, 1042, text],
  ['varchar', 1015, 1043, text],
  ['int8', 1016, 20, text],
  ['float4', 1021, 700, Number],
  ['float8', 1022, 701, Number],
  ['oid', 1028, 26, Number],
  ['timestamp', 1115, 1114, date],
  ['date', 1182, 1082, date],
  ['time', 1183, 1083, text],
  ['timestamptz', 1185, 1184, date],
  ['interval', 1187, 1186, text],
  ['numeric', 1231, 1700, text],
  ['json', 199, 114, json],
  ['xid8', 271, 5069, text],
  ['uuid', 2951, 2950, text],
  ['jsonb', 3807, 3802, json],
]

/** For the option `types` of a client. */
export const arrayTypes: Record<string, postgres.PostgresType> = Object.fromEntries(
  elements.map(([name, array, , parseElement]) => [
    `${name}Array`,
    {
      to: array,
      from: [array],
      parse: (value: string) => parse(value, parseElement),
      serialize: serializeArray,
    },
  ]),
)

/** Lets `sql.array(values, elementOid)` find the array's own type; the driver keeps this map beside its options. */
export function registerArrayTypes(sql: postgres.Sql): void {
  const { shared } = sql.options as unknown as { shared: { typeArrayMap: Record<number, number> } }
  for (const [, array, element] of elements) shared.typeArrayMap[element] = array
}

function serializeArray(value: unknown): unknown {
  if (!Array.isArray(value)) return value
  return `{${value.map(serializeElement).join(',')}}`
}

function serializeElement(value: unknown): unknown {
  if (Array.isArray(value)) return serializeArray(value)
  if (value === null || value === undefined) return 'null'
  return `"${literal(value).replaceAll(/["\\]/g, String.raw`\$&`)}"`
}

function literal(value: unknown): string {
  if (value instanceof Date) return value.toISOString()
  if (value instanceof Uint8Array) return `\\x${Buffer.from(value).toString('hex')}`
  return typeof value === 'string' ? value : JSON.stringify(value)
}
