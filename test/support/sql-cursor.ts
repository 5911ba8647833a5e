import type { Participant } from '../../src/db/databases.ts'
import { HandCursor, insertCursor } from './outbox-cursor.ts'

/** A cursor of the outbox that goes on as a relay's does, by the functions of the schema alone. */
export class SqlCursor extends HandCursor {
  readonly #primary: Participant

  private constructor(primary: Participant, sink: string, shard: number) {
    super(primary.sql, sink, shard)
    this.#primary = primary
  }

  static async make(primary: Participant, sink: string, shard: number): Promise<SqlCursor> {
    await primary.transaction((tx) => insertCursor(tx, sink, shard))
    return new SqlCursor(primary, sink, shard)
  }

  /** One of each shard. */
  static async makeAll(primary: Participant, sink: string): Promise<SqlCursor[]> {
    const made: SqlCursor[] = []
    for (let shard = 0; shard < 4; shard++) made.push(await SqlCursor.make(primary, sink, shard))
    return made
  }

  /** Passes all that is visible now, as a relay does: first the epoch is committed, then it is read. */
  async pass(): Promise<string[]> {
    const { sink, shard } = this
    const from = await this.position()
    await this.#primary.transaction(async (tx) => {
      await tx`select 1 from holdfast.outbox_cursors where sink = ${sink} and shard = ${shard} for update`
      await tx`select holdfast.start_outbox_epoch(${sink}, ${shard}::smallint, ${from.no}::bigint,
        ${from.target}::text::pg_snapshot, ${from.targetSequence}::bigint)`
    })
    const { no, base, target } = await this.position()
    const rows = await this.#primary.sql<{ id: string }[]>`
      select id from holdfast.outbox where shard = ${shard} and pg_visible_in_snapshot(xid, ${target}::text::pg_snapshot)
        and not pg_visible_in_snapshot(xid, ${base}::text::pg_snapshot) order by id`
    await this.#primary.transaction(async (tx) => {
      await tx`select 1 from holdfast.outbox_cursors where sink = ${sink} and shard = ${shard} for update`
      await tx`select holdfast.advance_outbox(${sink}, ${shard}::smallint, ${no}::bigint,
        ${rows.at(-1)?.id ?? '0'}::bigint, null)`
    })
    return rows.map(({ id }) => id)
  }

  /** Starts an epoch of another kind, in the middle of which it stays. */
  async turnTo(kind: 'replay' | 'parked'): Promise<void> {
    await this.turn(kind, { id: '0' })
  }
}
