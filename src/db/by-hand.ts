import type { Sql } from './databases.ts'
import type { Json } from './json.ts'
import type { GidParts } from './transaction-name.ts'

/** The audited functions of an operator (migration 0006); whoever may not call them gets 42501. */
export type Hand = { decision: 'commit' | 'abort'; who: string; why: string }

/** False: somebody decided already. */
export async function decideByHand(sql: Sql, attempt: string, hand: Hand, evidence: Json): Promise<boolean> {
  const [row] = await sql<{ decided: boolean }[]>`
    select holdfast.decide_by_hand(${attempt}, ${hand.decision}, ${hand.who}, ${hand.why}, ${sql.json(evidence)}) as decided`
  return row?.decided ?? false
}

/** False: it was not quarantined. */
export async function releaseQuarantine(
  sql: Sql,
  attempt: string,
  { who, why }: Pick<Hand, 'who' | 'why'>,
): Promise<boolean> {
  const [row] = await sql<{ released: boolean }[]>`
    select holdfast.release_quarantine(${attempt}, ${who}, ${why}) as released`
  return row?.released ?? false
}

/** False: its compensation was not given up. */
export async function recordCompensated(
  sql: Sql,
  attempt: string,
  { who, why }: Pick<Hand, 'who' | 'why'>,
): Promise<boolean> {
  const [row] = await sql<{ recorded: boolean }[]>`
    select holdfast.compensated_by_hand(${attempt}, ${who}, ${why}) as recorded`
  return row?.recorded ?? false
}

/** Before a gid without a row is finished. */
export async function recordByHand(
  sql: Sql,
  { name, attempt }: GidParts,
  hand: Hand,
  evidence: Json,
): Promise<void> {
  await sql`
    select holdfast.record_by_hand('finished_by_hand', ${name}, ${attempt}, ${hand.who}, ${hand.why}, ${sql.json(evidence)})`
}
