import type { Keyset } from './keyset.ts'
import type { Sql } from './tx.ts'

/** What the planner takes for cheap to count is counted; of the rest its estimate will do. */
const countedRows = 200_000
const countedCost = 50_000

export async function countRows(sql: Sql, { from }: Keyset): Promise<{ rows: bigint; exact: boolean }> {
  const { rows, cost } = await estimate(sql, `select from ${from}`)
  if (rows > countedRows || cost > countedCost) return { rows: BigInt(Math.round(rows)), exact: false }
  const [counted] = await sql.unsafe<{ rows: string }[]>(`select count(*) as rows from ${from}`)
  return { rows: BigInt(counted?.rows ?? 0), exact: true }
}

/** What the planner expects of a statement; where nothing was ever analysed, by the size of the tables. */
export async function estimate(
  sql: Sql,
  text: string,
  values: string[] = [],
): Promise<{ rows: number; cost: number }> {
  const [row] = await sql.unsafe<
    { 'QUERY PLAN': { Plan: { 'Plan Rows': number; 'Total Cost': number } }[] }[]
  >(`explain (format json) ${text}`, values)
  const plan = row?.['QUERY PLAN'][0]?.Plan
  if (!plan) throw new Error('explain answered no plan')
  return { rows: plan['Plan Rows'], cost: plan['Total Cost'] }
}
