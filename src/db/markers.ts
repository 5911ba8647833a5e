import type { Participant } from './databases.ts'
import { attemptFromUuid } from './transaction-name.ts'

/**
 * Table transaction_markers: the answer to "did this attempt commit here?" that outlives the gid.
 *
 * The staged work writes `committed` as its last act; the row appears exactly when that participant commits. Whoever
 * wants a rollback *proved* writes `aborted` in a transaction of its own (the fence): from then on a PREPARE of that
 * attempt which is still on its way fails with 23505.
 */
export type MarkerOutcome = 'committed' | 'aborted'

/** The seal of staged work: its marker, by a plain INSERT, so that a fenced attempt fails here (23505). */
export function sealText(participant: string): string {
  return `CALL holdfast.seal('${participant}')`
}

/** The seal of commit-forward work, whose name can commit only once: marker and audit row. */
export function sealForwardText(participant: string, name: string): string {
  return `CALL holdfast.seal_forward('${participant}', '${name}')`
}

/**
 * Writes the fence and returns which marker stands. The insert waits for a prepared or running marker of the same
 * attempt, at most `lockTimeoutMs` (55P03), so ROLLBACK PREPARED comes before. The marker is read in a later
 * statement: the insert's own snapshot does not see the row it conflicted with.
 */
export async function fence(
  participant: Participant,
  attempt: string,
  lockTimeoutMs = 2_000,
): Promise<MarkerOutcome> {
  await participant.transaction(async (sql) => {
    await sql`select set_config('lock_timeout', ${String(lockTimeoutMs)}, true), set_config('synchronous_commit', 'on', true)`
    await sql`
      insert into holdfast.transaction_markers (attempt, participant, outcome)
      values (${attempt}, ${participant.name}, 'aborted') on conflict do nothing`
  })
  const outcome = await readMarker(participant, attempt)
  if (!outcome) throw new Error(`the fence of attempt ${attempt} in ${participant.name} vanished`)
  return outcome
}

export async function readMarker(
  participant: Participant,
  attempt: string,
): Promise<MarkerOutcome | undefined> {
  const [row] = await participant.sql<{ outcome: MarkerOutcome }[]>`
    select outcome from holdfast.transaction_markers
    where attempt = ${attempt} and participant = ${participant.name} and forward_name is null`
  return row?.outcome
}

/** The attempt under which a commit-forward name was committed, if it was. */
export async function committedForwardAttempt(
  participant: Participant,
  name: string,
): Promise<string | undefined> {
  const [row] = await participant.sql<{ attempt: string }[]>`
    select attempt from holdfast.transaction_markers where forward_name = ${name}`
  return row && attemptFromUuid(row.attempt)
}
