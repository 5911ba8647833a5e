import type { Participant } from './databases.ts'

/**
 * "canceling wait for synchronous replication": the statement took effect here, but whether a standby has it is not
 * known, so after a failover it may never have happened. PostgreSQL reports success with this warning; a Connection that
 * gets it rejects as if the answer had been lost.
 */
export function isUnreplicated(notice: { routine?: string | undefined }): boolean {
  return notice.routine === 'SyncRepWaitForLSN'
}

/**
 * Resolves once everything that was committed in this database until now is where `synchronous_commit` asks for it, also
 * on the standbys: a commit after it waits for the same. For what was read (a decision, a marker) and not acknowledged to
 * the one who acts upon it.
 */
export async function confirmReplicated(participant: Participant): Promise<void> {
  await participant.transaction(async (tx) => {
    await tx`set local synchronous_commit = on`
    // A record in the log without any row; without one there would be nothing to wait for.
    await tx`select pg_logical_emit_message(true, 'holdfast', '')`
  })
}
