import type { Connection } from './connection.ts'
import type { Cursor, Position } from './outbox-cursors.ts'
import { checkPrepared, commitPreparedTexts, stagePageText } from './prepared.ts'

/** One page of a cursor as a staged transaction: lock, append the new position, what was parked or unparked, PREPARE. */
export type PageStaging = {
  cursor: Cursor
  gid: string
  attempt: string
  /** the position before the page */
  at: Position
  /** the last id of the page */
  lastId: bigint
  /** what else the page changes, as SQL: see outbox-parked */
  changes: readonly string[]
}

/**
 * Stages a page, and commits the one before it in the same flush when there is one. Returns the page's own xid, taken
 * after the lock: a later holder of the lock has a higher one, so a sink can tell a zombie.
 */
export async function stagePage(
  connection: Connection,
  page: PageStaging,
  ownerRole: string | undefined,
  previous?: string,
): Promise<{ xid: bigint }> {
  const work = [lockText(page), advanceText(page), ...page.changes, xidText]
  const texts = [stagePageText(page.gid, page.attempt, ownerRole, work)]
  if (previous !== undefined) texts.unshift(...commitPreparedTexts(previous, ownerRole).texts)
  const answers = await connection.flush(texts)
  for (const answer of answers) if (answer.status === 'rejected') throw answer.reason
  const staged = answers.at(-1)
  const results = staged?.status === 'fulfilled' ? staged.value : []
  checkPrepared(results)
  const xid: unknown = results.at(-1)?.[0]?.xid
  return { xid: BigInt(String(xid)) }
}

const xidText = 'SELECT pg_current_xact_id()::text AS xid'

function lockText({ cursor }: PageStaging): string {
  return `SELECT 1 FROM holdfast.outbox_cursors WHERE ${whereCursor(cursor)} FOR UPDATE`
}

function advanceText({ cursor: { sink, shard }, at, lastId, attempt }: PageStaging): string {
  return `SELECT holdfast.advance_outbox('${sink}', ${Math.trunc(shard)}::smallint, ${at.no}, ${lastId}, '${attempt}')`
}

/** Names of sinks are checked by the config: letters, digits and hyphens. */
export function whereCursor({ sink, shard }: Cursor): string {
  return `sink = '${sink}' AND shard = ${Math.trunc(shard)}`
}
