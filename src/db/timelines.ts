import type { Participant, Sql } from './databases.ts'
import { readServer } from './servers.ts'

/** Table timelines: in which life of its server each participant was last confirmed. */
export type Timeline = { systemIdentifier: string; timeline: number }

/** Compares; the first look records what it finds. Undefined: as confirmed. A standby is not a life of its own. */
export async function changedTimeline(
  primary: Sql,
  participant: Participant,
  actor: string,
): Promise<{ was: Timeline; is: Timeline } | undefined> {
  const { systemIdentifier, timeline } = await readServer(participant.sql)
  if (timeline === undefined) return undefined
  const is = { systemIdentifier, timeline }
  const [was] = await primary<Timeline[]>`
    select system_identifier as "systemIdentifier", timeline from holdfast.timelines where participant = ${participant.name}`
  if (!was) {
    await primary`
      insert into holdfast.timelines (participant, system_identifier, timeline, confirmed_by)
      values (${participant.name}, ${systemIdentifier}, ${timeline}, ${actor}) on conflict do nothing`
    return undefined
  }
  return was.systemIdentifier === systemIdentifier && was.timeline === timeline ? undefined : { was, is }
}

/** An operator confirms that the server as it is now may be recovered on. */
export async function confirmTimeline(
  primary: Sql,
  participant: Participant,
  who: string,
): Promise<Timeline> {
  const { systemIdentifier, timeline } = await readServer(participant.sql)
  if (timeline === undefined)
    throw new Error(`${participant.name} is a standby; confirm it once it is promoted`)
  await primary`
    insert into holdfast.timelines (participant, system_identifier, timeline, confirmed_by)
    values (${participant.name}, ${systemIdentifier}, ${timeline}, ${who})
    on conflict (participant) do update set system_identifier = excluded.system_identifier,
      timeline = excluded.timeline, confirmed_by = excluded.confirmed_by, at = clock_timestamp()`
  return { systemIdentifier, timeline }
}
