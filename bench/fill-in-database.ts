import type { Participant } from '../src/db/databases.ts'

const perTransaction = 5_000

/** Appends events by SQL alone, without carrying them there, over as many connections as that. */
export async function fillInDatabase(
  database: Participant,
  events: number,
  connections: number,
): Promise<void> {
  let next = 0
  await Promise.all(
    Array.from({ length: connections }, async () => {
      for (let from = next; from < events; from = next) {
        next = from + perTransaction
        const to = Math.min(next, events) - 1
        await database.transaction(async (tx) => {
          // Losing the newest on a crash of the server would not matter here.
          await tx`set local synchronous_commit = off`
          await tx`
            select holdfast.append_events(('[' || string_agg(
              '{"specversion":"1.0","id":"' || uuidv7() || '","source":"/holdfast","type":"order.placed","time":'
              || to_json(clock_timestamp()) || ',"subject":"order-' || n || '","partitionkey":"order-' || n
              || '","datacontenttype":"application/json","data":{"order":' || n
              || ',"total":1234,"currency":"EUR","items":[{"sku":"A-1","quantity":2}]}}', ','
            ) || ']')::json)
            from generate_series(${from}::bigint, ${to}::bigint) n`
        })
      }
    }),
  )
}
