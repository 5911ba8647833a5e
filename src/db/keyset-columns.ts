import { InvalidConfigError } from './errors.ts'
import type { Keyset } from './keyset.ts'
import type { KeyColumn } from './keyset-range.ts'
import { messageOf } from './message-of.ts'
import { quoteTable } from './quote.ts'
import { SQLSTATE, sqlstateOf } from './sqlstate.ts'
import type { Sql } from './tx.ts'

/** A key as its user writes it. */
export type KeyEntry = { name: string; nulls: 'first' | 'last' | undefined }

type Relation = {
  relation: number
  kind: string
  /** tables that inherit from it in the old way: no index of it knows their rows */
  heirs: boolean
  columns: { name: string; number: number; type: string; collation: string | null; nullable: boolean }[]
  /** by which equal rows cannot be; `nulls`: two nulls are equal */
  unique: { columns: string[]; nulls: boolean; primary: boolean }[]
}

/**
 * What is to be known of a table or a view. An index proves that rows differ where it is of all rows and of columns alone,
 * and takes for different what the order does too: a collation by which different texts are equal has to be the column's.
 */
export async function describeTable(
  sql: Sql,
  table: string,
  database: string,
  key: readonly KeyEntry[],
): Promise<Keyset> {
  const parts = table.split('.')
  const quoted = quoteTable(parts)
  const label = `keyset(${table})`
  const [found] = await sql<Relation[]>`
    select c.oid::int8::float8 as relation, c.relkind as kind,
      c.relkind = 'r' and exists (select from pg_catalog.pg_inherits where inhparent = c.oid) as heirs,
      (select coalesce(jsonb_agg(jsonb_build_object(
          'name', a.attname, 'number', a.attnum, 'type', format_type(a.atttypid, a.atttypmod),
          'collation', quote_ident(n.nspname) || '.' || quote_ident(o.collname),
          'nullable', not a.attnotnull or exists (
            select from pg_catalog.pg_constraint k
            where k.conrelid = c.oid and k.contype = 'n' and not k.convalidated and a.attnum = any (k.conkey)))), '[]')
        from pg_catalog.pg_attribute a left join pg_catalog.pg_collation o on o.oid = a.attcollation
          left join pg_catalog.pg_namespace n on n.oid = o.collnamespace
        where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped) as columns,
      (select coalesce(jsonb_agg(jsonb_build_object(
          'columns', x.columns, 'nulls', coalesce((to_jsonb(i) ->> 'indnullsnotdistinct')::boolean, false),
          'primary', i.indisprimary)), '[]')
        from pg_catalog.pg_index i cross join lateral (
          select jsonb_agg(a.attname) as columns,
            bool_and(a.attname is not null and (p.compared_by = a.attcollation or o.collisdeterministic is not false)) as fit
          from unnest(i.indkey::int2[], i.indcollation::oid[]) with ordinality as p (attnum, compared_by, place)
          left join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = p.attnum
          left join pg_catalog.pg_collation o on o.oid = a.attcollation
          where p.place <= i.indnkeyatts) x
        where i.indrelid = c.oid and i.indisunique and i.indisvalid and i.indpred is null and x.fit) as unique
    from pg_catalog.pg_class c where c.oid = to_regclass(${quoted})`
  if (!found)
    throw new InvalidConfigError([`${label}: there is no table ${table} on the ${database} database`])
  if (!['r', 'p', 'v', 'm', 'f'].includes(found.kind))
    throw new InvalidConfigError([`${label}: ${table} is neither a table nor a view`])
  // Of what else there is, the catalog knows neither whether rows differ nor where null is.
  const provable = ['r', 'p'].includes(found.kind) && !found.heirs
  const problems: string[] = []
  const columns = key.flatMap(({ name, nulls }): (KeyColumn & { nullable: boolean; number: number })[] => {
    const column = found.columns.find((c) => c.name === name)
    if (!column) problems.push(`${label}: table ${table} has no column ${name}`)
    else if (provable && column.nullable && nulls === undefined) {
      problems.push(
        `${label}: column ${table}.${name} may be null; say where null goes: { column: ${JSON.stringify(name)}, nulls: 'last' } (or 'first') in place of its name`,
      )
    }
    return column ? [{ ...column, nulls }] : []
  })
  if (problems.length === 0 && provable) problems.push(...uniquenessProblems(label, table, found, key))
  if (problems.length > 0) throw new InvalidConfigError(problems)
  return {
    ...assemble(key, columns, provable),
    label,
    from: quoted,
    origin: {
      relation: found.relation,
      columns: columns.map(({ number }) => number),
      own: true,
      partitioned: found.kind === 'p',
    },
  }
}

function uniquenessProblems(
  label: string,
  table: string,
  { columns, unique }: Relation,
  key: readonly KeyEntry[],
): string[] {
  const names = key.map(({ name }) => name)
  const nullable = new Set(columns.filter((column) => column.nullable).map(({ name }) => name))
  const proofs = unique.filter((index) => index.nulls || !index.columns.some((name) => nullable.has(name)))
  if (proofs.some((index) => index.columns.every((name) => names.includes(name)))) return []
  const proof = proofs.find((index) => index.primary) ?? proofs[0]
  const missing = proof?.columns.filter((name) => !names.includes(name)).map((name) => JSON.stringify(name))
  const advice = missing
    ? `add ${missing.join(' and ')} of its ${proof?.primary === true ? 'primary key' : 'unique index'} to the end of the key`
    : 'give it a primary key and add its columns to the key'
  return [
    `${label}: rows of ${table} can have the same key (${names.join(', ')}), so some would be skipped; ${advice}`,
  ]
}

/** What is to be known of a query, from a run of it that is asked for no row. */
export async function describeQuery(sql: Sql, query: string, key: readonly KeyEntry[]): Promise<Keyset> {
  const label = 'keyset(query)'
  // A comment at its end must not reach further.
  const from = `(\n${query}\n) as query`
  // Without parameters it goes by the simple protocol, where a parameter of the query's own has no place.
  const { columns: found } = await sql.unsafe(`select * from ${from} limit 0`).then(
    (result) => result,
    (error: unknown) => {
      // Class 42: syntax, names, rights. What is not supported is to change data in it.
      const state = sqlstateOf(error) ?? ''
      if (!state.startsWith('42') && state !== SQLSTATE.featureNotSupported) throw error
      const what = `${label}: it is not a SELECT without parameters that can be read as a subquery`
      throw new InvalidConfigError([`${what}: ${messageOf(error)}`], { cause: error })
    },
  )
  const types = await sql<{ type: number; name: string }[]>`
    select t::int8::float8 as type, format_type(t, -1) as name
    from unnest(${found.map(({ type }) => String(type))}::text[]::oid[]) as t`
  const problems: string[] = []
  const columns = key.flatMap(({ name, nulls }) => {
    const matches = found.filter((column) => column.name === name)
    const [column] = matches
    if (matches.length > 1) problems.push(`${label}: several of its columns are called ${name}`)
    if (!column) problems.push(`${label}: it has no column ${name}`)
    const type = types.find((t) => t.type === column?.type)?.name
    return column && type !== undefined ? [{ ...column, name, type, collation: null, nulls }] : []
  })
  if (problems.length > 0) throw new InvalidConfigError(problems)
  return { ...assemble(key, columns, false), label, from, origin: originOf(columns) }
}

/** The relation that all of these columns come from as they are; there may be none. */
export function originOf(columns: readonly { table: number; number: number }[]): Keyset['origin'] {
  const [first] = columns
  if (!first || !columns.every(({ table, number }) => table > 0 && table === first.table && number > 0))
    return undefined
  return {
    relation: first.table,
    columns: columns.map(({ number }) => number),
    own: false,
    partitioned: false,
  }
}

/**
 * Where null cannot be ruled out it has its place in the order, at the end: a comparison that left it out would skip the
 * row in silence. It is an error where the user did not ask for it, when its turn comes.
 */
function assemble(
  key: readonly KeyEntry[],
  columns: readonly (KeyColumn & { nullable?: boolean })[],
  proven: boolean,
): Pick<Keyset, 'columns' | 'proven' | 'notNull' | 'plain'> {
  return {
    columns: columns.map(({ name, type, collation, nulls, nullable }) => ({
      name,
      type,
      collation,
      nulls: proven && nullable === false ? undefined : (nulls ?? 'last'),
    })),
    proven,
    notNull: proven ? [] : key.filter(({ nulls }) => nulls === undefined).map(({ name }) => name),
    plain: key.length === 1 && key[0]?.nulls === undefined,
  }
}
