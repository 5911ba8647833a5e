import { InvalidPayloadError } from './errors.ts'
import { type EventRunner, isSqlTag, rowsOf } from './event-runner.ts'
import type { Tx } from './tx.ts'

/**
 * Table inbox_seen, in every participant: which events a consumer has seen. A row is written in the transaction that does
 * the work, so both exist or neither. What keeps two transactions from both doing it:
 *
 * 1. The second waits at the key until the first has ended, also while the first is prepared; then it conflicts (the
 *    first committed) or inserts (it rolled back).
 * 2. Above READ COMMITTED the row may have been committed after the second's snapshot: 40001, since nothing that it has
 *    read holds any more. The whole transaction has to run again.
 * 3. Retention forgets. An event that comes again after that is new.
 */
export async function recordSeen(runner: EventRunner, consumer: string, eventId: string): Promise<boolean> {
  checkKey(consumer, 'consumer')
  checkKey(eventId, 'eventId')
  if (isSqlTag(runner, 'once')) {
    const rows =
      await runner`insert into holdfast.inbox_seen (consumer, event_id) values (${consumer}, ${eventId}) on conflict do nothing returning 1`
    return rows.length > 0
  }
  const text =
    'insert into holdfast.inbox_seen (consumer, event_id) values ($1, $2) on conflict do nothing returning 1'
  return rowsOf(await runner.query(text, [consumer, eventId]), 'once').length > 0
}

/** In the caller's transaction: forgets at most `limit` of what was seen longer ago than that. Returns how many. */
export async function removeOldSeen(tx: Tx, retentionMs: number, limit: number): Promise<number> {
  const { count } = await tx`
    delete from holdfast.inbox_seen where ctid = any (array(
      select ctid from holdfast.inbox_seen
      where seen_at < statement_timestamp() - make_interval(secs => ${retentionMs / 1000})
      limit ${limit} for update skip locked))`
  return count
}

const maxKeyLength = 200

function checkKey(text: unknown, what: string): void {
  if (typeof text !== 'string' || text === '' || text.length > maxKeyLength)
    throw new InvalidPayloadError(`${what} is not a text of 1 to ${maxKeyLength} characters`)
  // The driver would send every lone surrogate as U+FFFD, and two different keys would be one.
  if (text.includes('\u0000') || !text.isWellFormed())
    throw new InvalidPayloadError(
      `${what} has U+0000 or a lone surrogate in it, which PostgreSQL cannot store`,
    )
}
