import { beforeAll, expect } from 'vitest'
import type { Json } from '../../../src/db/json.ts'
import type { Sql, Tx } from '../../../src/db/tx.ts'
import type { JobContext } from '../../../src/jobs/context.ts'
import type { Source } from '../../../src/jobs/source.ts'
import { newDatabases, openContext } from '../../support/database.ts'

/**
 * One database for a file, in which each test begins with an empty schema, and its SQL: each statement by itself is
 * transaction enough to read in.
 */
export function sharedDatabase(): () => Promise<{ ctx: JobContext; sql: Tx }> {
  let ctx: JobContext
  beforeAll(async () => {
    ctx = await openContext(await newDatabases())
  })
  return async () => {
    const { sql } = ctx.databases.primary
    await sql.unsafe('drop schema public cascade; create schema public')
    return { ctx, sql: sql as Tx }
  }
}

/** The keys of a range in the order of reading, in chunks of these sizes in turn. */
export async function readKeys(
  source: Source<object>,
  sql: Tx,
  sizes: readonly number[],
  after: Json = null,
  until: Json = null,
): Promise<Json[]> {
  const keys: Json[] = []
  let cursor = after
  for (let i = 0; ; i++) {
    const size = sizes[i % sizes.length]!
    const chunk = await source.read(sql, cursor, size, until)
    expect(chunk.rows).toHaveLength(chunk.keys.length)
    expect(chunk.rows.length).toBeLessThanOrEqual(size)
    // Only the last may be short, and none is empty but that of an empty range.
    if (!chunk.last) expect(chunk.rows).toHaveLength(size)
    if (i > 0) expect(chunk.rows).not.toHaveLength(0)
    keys.push(...chunk.keys)
    cursor = JSON.parse(JSON.stringify(chunk.cursor)) as Json
    if (chunk.last) return keys
  }
}

/** The ranges that boundaries make of one. */
export function rangesOf(
  after: Json,
  boundaries: readonly Json[],
  until: Json,
): { after: Json; until: Json }[] {
  const ends = [...boundaries, until]
  return ends.map((end, i) => ({ after: i === 0 ? after : ends[i - 1]!, until: end }))
}

type Plan = { 'Node Type': string; 'Actual Rows': number; 'Actual Loops': number; Plans?: Plan[] } & Record<
  string,
  unknown
>

/** The plans of what is read meanwhile through `sql`: executed, so with what each node did. */
export function explained(sql: Tx): { sql: Tx; plans: Plan[] } {
  const plans: Plan[] = []
  const unsafe = async (text: string, values: never[]) => {
    if (text.startsWith('explain')) return sql.unsafe(text, values)
    const [row] = await sql.unsafe(`explain (analyze, buffers, format json) ${text}`, values)
    plans.push((row as { 'QUERY PLAN': [{ Plan: Plan }] })['QUERY PLAN'][0].Plan)
    return sql.unsafe(text, values)
  }
  const call = (...args: Parameters<Sql>) => (sql as (...given: Parameters<Sql>) => unknown)(...args)
  const watched: unknown = Object.assign(call, sql, { unsafe })
  return { sql: watched as Tx, plans }
}

export function nodesOf(plan: Plan): Plan[] {
  return [plan, ...(plan.Plans ?? []).flatMap(nodesOf)]
}
