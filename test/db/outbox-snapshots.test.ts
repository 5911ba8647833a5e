import { describe, expect, it } from 'vitest'
import { recordSnapshot } from '../../src/db/outbox-snapshots.ts'
import type { JobContext } from '../../src/jobs/context.ts'
import { newDatabases, openContext } from '../support/database.ts'
import { SqlCursor } from '../support/sql-cursor.ts'

const arrange = async () => (await openContext(await newDatabases())).databases.primary
type Primary = JobContext['databases']['primary']

const publish = (primary: Primary) => primary.sql`select holdfast.publish('t', 's', '1')`
const records = (primary: Primary) => primary.sql<{ snapshot: string; sequence: string; floor: string }[]>`
  select snapshot::text, sequence, floor from holdfast.outbox_snapshots order by at`
const aMinuteLater = (primary: Primary) =>
  primary.sql`update holdfast.outbox_snapshots set at = at - interval '61 s'`

describe('the record of what is visible when', () => {
  it('is made once a minute, and only when events were appended', async () => {
    const primary = await arrange()
    await publish(primary)
    expect(await recordSnapshot(primary)).toBe(true)
    await publish(primary)
    expect(await recordSnapshot(primary)).toBe(false)
    await aMinuteLater(primary)
    expect(await recordSnapshot(primary)).toBe(true)
    await aMinuteLater(primary)
    expect(await recordSnapshot(primary)).toBe(false)
    expect((await records(primary)).map(({ sequence }) => sequence)).toEqual(['1', '2'])
  })

  it('is made by one of ten processes', async () => {
    const primary = await arrange()
    for (let round = 1; round <= 20; round++) {
      await publish(primary)
      await aMinuteLater(primary)
      const made = await Promise.all(Array.from({ length: 10 }, () => recordSnapshot(primary)))
      expect(made.filter(Boolean)).toHaveLength(1)
      expect(await records(primary)).toHaveLength(round)
    }
  })

  it('has what is visible, no row of which lies above its sequence, and the highest floor of a cursor', async () => {
    const primary = await arrange()
    await SqlCursor.makeAll(primary, 'mail')
    await primary.sql`update holdfast.outbox_positions set floor = shard * 10`
    await primary.sql`
      insert into holdfast.outbox_positions (sink, shard, no, epoch, base, target, last_id, floor)
      values ('mail', 3, 1, 1, '3:3:', '3:3:', 0, 25)`
    await publish(primary)
    await primary.transaction(async (tx) => {
      await tx`select holdfast.publish('t', 's', '2')`
      expect(await recordSnapshot(primary)).toBe(true)
    })
    const [record] = await records(primary)
    expect(record).toMatchObject({ sequence: '2', floor: '25' })
    const seen = await primary.sql`
      select event::json -> 'data' as data from holdfast.outbox where pg_visible_in_snapshot(xid, ${record?.snapshot ?? ''}::text::pg_snapshot)`
    expect(seen).toEqual([{ data: 1 }])
  })
})
