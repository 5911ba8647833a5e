import type { Sql } from './databases.ts'
import type { Cursor } from './outbox-cursors.ts'

/**
 * Table outbox_circuits: what the relay that runs a cursor last said of its sink, for other processes to see. open: the
 * sink takes nothing now; blocked: the shard waits for one event.
 */
export type CircuitState = 'closed' | 'open' | 'blocked'

export async function recordCircuit(
  sql: Sql,
  cursors: readonly Cursor[],
  said: { state: CircuitState; failures: number; error: string | undefined; worker: string },
): Promise<void> {
  if (cursors.length === 0) return
  const { state, failures, error, worker } = said
  const rows = cursors.map(({ sink, shard }) => ({
    sink,
    shard,
    state,
    failures,
    error: error ?? null,
    worker,
  }))
  await sql`
    insert into holdfast.outbox_circuits ${sql(rows, 'sink', 'shard', 'state', 'failures', 'error', 'worker')}
    on conflict (sink, shard) do update set failures = excluded.failures, error = excluded.error, worker = excluded.worker,
      state = excluded.state, since = case when outbox_circuits.state = excluded.state then outbox_circuits.since
        else excluded.since end`
}
