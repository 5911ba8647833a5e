import { randomUUID } from 'node:crypto'
import { createClient } from '../../src/db/client.ts'
import type { Sql } from '../../src/db/databases.ts'
import type { Tx } from '../../src/db/tx.ts'

/** A cursor that the test itself moves, by the functions of the schema. */
export class HandCursor {
  readonly sink: string
  readonly shard: number
  readonly #sql: Sql

  protected constructor(sql: Sql, sink: string, shard: number) {
    this.#sql = sql
    this.sink = sink
    this.shard = shard
  }

  static async create(sql: Sql, sink: string, shard: number): Promise<HandCursor> {
    await insertCursor(sql, sink, shard)
    return new HandCursor(sql, sink, shard)
  }

  async position() {
    const [row] = await this.#sql<
      { no: string; base: string; target: string; targetSequence: string; lastId: string }[]
    >`
      select no, base::text, target::text, target_sequence as "targetSequence", last_id as "lastId"
      from holdfast.outbox_positions where sink = ${this.sink} and shard = ${this.shard} order by no desc limit 1`
    return row!
  }

  /** The next list: all that is visible now and was not at the last one. */
  async startEpoch(): Promise<void> {
    const { no, target, targetSequence } = await this.position()
    await this.#sql`
      select holdfast.start_outbox_epoch(${this.sink}, ${this.shard}::smallint, ${no}::bigint,
        ${target}::text::pg_snapshot, ${targetSequence}::bigint)`
  }

  async advance(lastId: string): Promise<void> {
    const { no } = await this.position()
    await this.#sql`
      select holdfast.advance_outbox(${this.sink}, ${this.shard}::smallint, ${no}::bigint, ${lastId}::bigint, null)`
  }

  /** Starts a list of another kind, or ends one. */
  async turn(kind: string, since: { snapshot?: string; floor?: string; id?: string } = {}): Promise<void> {
    const { no } = await this.position()
    await this.#sql`
      select holdfast.turn_outbox(${this.sink}, ${this.shard}::smallint, ${no}::bigint, ${kind},
        ${since.snapshot ?? null}::text::pg_snapshot, ${since.floor ?? null}::bigint, ${since.id ?? null}::bigint)`
  }

  /** Parks an event that the outbox need not hold; `dead` and `key` as they come. Returns its id. */
  async park(key: string | null, { dead = false, reason = 'no such account' } = {}): Promise<string> {
    const [row] = await this.#sql<{ id: string }[]>`
      insert into holdfast.outbox_parked (sink, shard, outbox_id, event_id, type, partitionkey, event, attempts,
        errors, dead_at, retry_at)
      values (${this.sink}, ${this.shard}, 1, gen_random_uuid(), 'order.placed', ${key},
        '{"data": {"secret": "of the customer"}}', ${dead ? 10 : 0},
        ${this.#sql.json(dead ? [{ at: new Date().toISOString(), reason }] : [])}, ${dead ? new Date() : null}, null)
      returning event_id as id`
    return row!.id
  }
}

/** A cursor at its beginning. */
export async function insertCursor(sql: Sql | Tx, sink: string, shard: number): Promise<void> {
  await sql`insert into holdfast.outbox_cursors (sink, shard) values (${sink}, ${shard})`
  await sql`
    insert into holdfast.outbox_positions (sink, shard, no, epoch, base, target, last_id)
    values (${sink}, ${shard}, 0, 0, '3:3:', '3:3:', 0)`
}

/** Locks all cursors as a page in doubt does; returns what rolls it back. */
export async function holdCursors(url: string): Promise<() => Promise<void>> {
  const sql = createClient(url, { max: 1 })
  const gid = `a-page-${randomUUID()}`
  await sql.unsafe(`begin; select from holdfast.outbox_cursors for update; prepare transaction '${gid}'`)
  return async () => {
    await sql.unsafe(`rollback prepared '${gid}'`)
    await sql.end()
  }
}
