import type { Tx } from './tx.ts'

/**
 * The partitions of the outbox: a ring of eight slots (docs/adr/0008). New rows go to the current one; the others hold
 * what is older, or nothing.
 */
export const slots = [0, 1, 2, 3, 4, 5, 6, 7] as const

export type Slot = {
  slot: number
  current: boolean
  /**
   * ages in milliseconds of the rows with the lowest and the highest xid of each shard: the first and the last near
   * enough, found without walking over the rows. Null: the slot is empty
   */
  oldestMs: number | null
  youngestMs: number | null
}

/** The partition's name, for query text. */
export function partitionOf(slot: number): string {
  return `holdfast.outbox_${Math.trunc(slot)}`
}

export async function readSlots(tx: Tx): Promise<Slot[]> {
  return tx.unsafe<Slot[]>(slots.map(slotText).join(' union all '))
}

function slotText(slot: number): string {
  const ageOf = (time: string) => `(extract(epoch from statement_timestamp() - ${time}) * 1000)::float8`
  const end = (order: string) =>
    `(select created_at from ${partitionOf(slot)} where shard = s.shard order by xid ${order} limit 1)`
  return `
    select ${slot} as slot, ${slot} = (select last_value from holdfast.outbox_slot) as current,
      ${ageOf('min(oldest.created_at)')} as "oldestMs", ${ageOf('max(youngest.created_at)')} as "youngestMs"
    from generate_series(0, holdfast.outbox_shards() - 1) s (shard)
    left join lateral ${end('asc')} oldest on true
    left join lateral ${end('desc')} youngest on true`
}

/** Lets new rows go to this slot. At once, whatever becomes of the transaction. */
export async function moveToSlot(tx: Tx, slot: number): Promise<void> {
  await tx`select setval('holdfast.outbox_slot', ${slot}::int)`
}
