import { reservedNames } from './cloud-event.ts'
import type { Participant } from './databases.ts'
import { sealText } from './markers.ts'
import type { OutboxEvent } from './outbox-event.ts'

/**
 * Table inbox, in a participant: what the table sink delivered. The rows and the attempt's marker commit together;
 * throws 23505 when the attempt was fenced.
 */
export async function deliverToInbox(
  target: Participant,
  attempt: string,
  events: readonly OutboxEvent[],
): Promise<void> {
  const json = `[${events.map((event) => event.json).join(',')}]`
  await target.transaction(async (tx) => {
    await tx.unsafe(`set local synchronous_commit = on; set local holdfast.attempt = '${attempt}'`)
    await tx`
      insert into holdfast.inbox (event_id, source, type, subject, partitionkey, time, data, headers)
      select id, source, type, subject, coalesce(partitionkey, subject), time, data, event - ${reservedNames}::text[]
      from jsonb_array_elements(${json}::text::jsonb) with ordinality as element(event, position),
        jsonb_to_record(event) as e(id uuid, source text, type text, subject text, partitionkey text, time timestamptz,
          data jsonb)
      order by position`
    await tx.unsafe(sealText(target.name))
  })
}
