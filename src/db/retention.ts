import type { Participant } from './databases.ts'
import { removeOldSeen } from './inbox-seen.ts'
import { removeOldJobs } from './jobs.ts'
import type { Tx } from './tx.ts'

/**
 * What retention removes of the transactions, in bounded batches. A marker is removed later than its row could be asked
 * for, and never while its attempt is unfinished: it is the answer to "did it commit here?".
 */
export type Retention = {
  /** of rows at their end, their votes and their markers, and of jobs that completed or were cancelled; milliseconds */
  transactionsMs: number
  /** of the audit, and of jobs that failed; milliseconds */
  eventsMs: number
  /**
   * of what consumers have seen (`once`); milliseconds. An event that comes again later than that counts as new, so it
   * must be longer than the longest time after which one can: redelivery, dead letters, replay. Left out, all is kept.
   */
  seenMs?: number
  /**
   * of events in the outbox that every sink has got; milliseconds. As far back a replay can go. Left out, all is kept.
   */
  outboxMs?: number
}

export type Removed = {
  transactions: number
  events: number
  runs: number
  jobs: number
  markers: number
  seen: number
}

/** In the coordinator; in the caller's transaction. Rows whose outcome is not settled stay, however old. */
export async function removeOld(tx: Tx, retention: Retention, limit: number): Promise<Removed> {
  const old = (ms: number) => tx`statement_timestamp() - make_interval(secs => ${ms / 1000})`
  const removed = await tx<{ attempt: string }[]>`
    delete from holdfast.distributed_transactions where attempt in (
      select attempt from holdfast.distributed_transactions t
      where status in ('committed', 'rolled_back', 'cleaned_up') and updated_at < ${old(retention.transactionsMs)}
        and quarantine is null and compensation in ('none', 'done')
        -- A job that does not know yet that it has committed must not find its name free.
        and not exists (select from holdfast.jobs j where 'job:' || j.id = t.name
                        and j.status in ('queued', 'running', 'cancelling'))
      order by updated_at limit ${limit} for update skip locked)
    returning attempt`
  if (removed.length > 0) {
    await tx`delete from holdfast.transaction_votes where attempt in ${tx(removed.map((row) => row.attempt))}`
  }
  const events = await tx`
    delete from holdfast.transaction_events where (name, id) in (
      select name, id from holdfast.transaction_events where at < ${old(retention.eventsMs)} limit ${limit})`
  const runs = await tx`delete from holdfast.job_runs where at < ${old(retention.eventsMs)}`
  const { transactionsMs: endedMs, eventsMs: failedMs } = retention
  const jobs = await removeOldJobs(tx, { endedMs, failedMs }, limit)
  const markers = await removeMarkersWithoutRow(tx, retention, limit)
  const seen = retention.seenMs === undefined ? 0 : await removeOldSeen(tx, retention.seenMs, limit)
  return { transactions: removed.length, events: events.count, runs: runs.count, jobs, markers, seen }
}

/** In any other participant. `unfinished`: the attempts whose markers stay. */
export async function removeOldMarkers(
  participant: Participant,
  retentionMs: number,
  unfinished: readonly string[],
  limit: number,
): Promise<number> {
  return participant.transaction(async (tx) => {
    const { count } = await tx`
      delete from holdfast.transaction_markers where ctid = any (array(
        select ctid from holdfast.transaction_markers
        where at < statement_timestamp() - make_interval(secs => ${retentionMs / 1000})
          and attempt <> all (${[...unfinished]}::uuid[])
        limit ${limit} for update skip locked))`
    return count
  })
}

/** Those of commit-forward work are its audit as well. */
async function removeMarkersWithoutRow(
  tx: Tx,
  { transactionsMs, eventsMs }: Retention,
  limit: number,
): Promise<number> {
  const shorter = Math.min(transactionsMs, eventsMs) / 1000
  const longer = Math.max(transactionsMs, eventsMs) / 1000
  const { count } = await tx`
    delete from holdfast.transaction_markers where ctid = any (array(
      select ctid from holdfast.transaction_markers m
      -- The first bound is for the index.
      where at < statement_timestamp() - make_interval(secs => ${shorter})
        and at < statement_timestamp() - make_interval(
          secs => case when forward_name is null then ${transactionsMs / 1000}::float8 else ${longer}::float8 end)
        and not exists (select from holdfast.distributed_transactions t where t.attempt = m.attempt)
      limit ${limit} for update skip locked))`
  return count
}
