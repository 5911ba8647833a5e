import type { Participant } from '../db/databases.ts'
import { messageOf } from '../db/message-of.ts'
import { ensureChecked } from '../db/migrate.ts'
import { isInRecovery, listPrepared } from '../db/prepared.ts'
import { changedTimeline } from '../db/timelines.ts'
import { type GidParts, parseGid } from '../db/transaction-name.ts'
import { within } from '../db/within.ts'
import type { JobContext } from './context.ts'

/** A prepared transaction of ours, as found on a participant. */
export type InDoubt = {
  gid: string
  participant: Participant
  parts: GidParts
  owner: string
  preparedAt: Date
}

/** How long one participant is waited for; then what involves it is left for the next round, and the others go on. */
export const patienceMs = 10_000

/** Our gids on every participant that can be asked; the others by name, with the reason. */
export type Listing = { found: Map<string, InDoubt>; unavailable: Map<string, string> }

/**
 * A participant counts as unavailable when it cannot be reached, when it is a standby (which lists nothing although it
 * has them), and while it lives on a timeline that nobody confirmed. The coordinator alone must be there.
 */
export async function listEverywhere(ctx: JobContext): Promise<Listing> {
  const found = new Map<string, InDoubt>()
  const unavailable = new Map<string, string>()
  await Promise.all(
    ctx.databases.all.map(async (participant) => {
      try {
        const listed = await within(patienceMs, `listing ${participant.name}`, list(ctx, participant))
        if (typeof listed === 'string') unavailable.set(participant.name, listed)
        else for (const one of listed) found.set(one.gid, one)
      } catch (error) {
        if (participant === ctx.databases.primary) throw error
        unavailable.set(participant.name, messageOf(error))
      }
    }),
  )
  return { found, unavailable }
}

async function list(ctx: JobContext, participant: Participant): Promise<InDoubt[] | string> {
  return (await whyUnavailable(ctx, participant)) ?? findInDoubt(ctx, participant, () => true)
}

/** Why nothing may be concluded from what a participant that can be reached says; undefined: it may. */
export async function whyUnavailable(ctx: JobContext, participant: Participant): Promise<string | undefined> {
  await ensureChecked(participant, ctx.installation)
  if (await isInRecovery(participant.sql)) return 'it is a standby'
  const change = await changedTimeline(ctx.databases.primary.sql, participant, ctx.lease.id)
  if (change) {
    const message = `the server of ${participant.name} lives on timeline ${change.is.timeline}, confirmed was ${change.was.timeline}${change.is.systemIdentifier === change.was.systemIdentifier ? '' : ' of another cluster'}: it was promoted or restored, so prepared transactions may be lost or have come back. Recovery there waits for \`holdfast tx recover --confirm-timeline ${participant.name}\` (docs/operations.md)`
    ctx.alerts.raise({ kind: 'timeline_changed', subject: participant.name, message })
    return message
  }
  return undefined
}

/** The in-doubt transactions on one participant whose name matches. */
export async function findInDoubt(
  ctx: JobContext,
  participant: Participant,
  matches: (parts: GidParts) => boolean,
): Promise<InDoubt[]> {
  const found: InDoubt[] = []
  for (const { gid, owner, preparedAt } of await listPrepared(participant.sql, ctx.installation)) {
    const parts = parseGid(gid)
    if (parts && matches(parts)) found.push({ gid, participant, parts, owner, preparedAt })
  }
  return found
}
