import type { Sql } from './databases.ts'
import type { EpochKind } from './outbox-cursors.ts'

/** Where a cursor stands, as far as it says which rows it has not passed. Numbers are text, as the database has them. */
export type Standing = {
  shard: number
  kind: EpochKind
  base: string
  target: string
  baseSequence: string
  targetSequence: string
  lastId: string
  floor: string
  since: string | null
  sinceFloor: string | null
  sinceId: string | null
  /** first xids that began after base, after target, after since, and after this look */
  afterBase: string
  afterTarget: string
  afterSince: string | null
  afterNow: string
  /** in progress in base, in base but no longer in target, in target, and in since */
  runningInBase: string[]
  lateInTarget: string[]
  runningInTarget: string[]
  runningInSince: string[]
  /** the database went back in time, so xids from before say nothing about those after */
  restored: boolean
  /** when it last moved, with all digits */
  movedAtText: string
}

export type Backlog = {
  events: number
  /** there may be more than that */
  atLeast: boolean
  /** of the oldest one that was found; 0 when there is none */
  oldestSeconds: number
}

/** Rows of the shard in a range of the index (shard, xid), and which of them are not passed. */
type Look = {
  where: string
  keep: string
  /** at which end to begin; default oldest */
  from?: 'oldest' | 'newest'
  /** all of them were there by then, also those that are not looked at */
  thereAt?: string
}

/**
 * The visible events of a cursor's shard that it has not passed. Each range is one of the index (shard, xid), of which at
 * most `bound` rows are looked at, so an outbox of any size costs the same. All values stand in the text, so the plan is
 * made for them.
 */
export async function readBacklog(sql: Sql, standing: Standing, bound: number): Promise<Backlog> {
  const [row] = await sql.unsafe<Backlog[]>(backlogText(standing, bound))
  return row ?? { events: 0, atLeast: false, oldestSeconds: 0 }
}

export function backlogText(standing: Standing, bound: number): string {
  const shard = Math.trunc(standing.shard)
  const parts = looksOf(standing).map(
    ({ where, keep, from = 'oldest', thereAt }) => `
      select count(*) filter (where kept) as kept, count(*) as looked,
        least(min(created_at) filter (where kept), min(${thereAt === undefined ? 'null' : `'${thereAt}'`}::timestamptz) filter (where kept)) as oldest
      from (
        select created_at, ${keep} as kept from holdfast.outbox where shard = ${shard} and ${where}
        order by xid ${from === 'oldest' ? 'asc' : 'desc'} limit ${bound + 1}
      ) seen`,
  )
  return `
    select coalesce(sum(least(kept, ${bound})), 0)::int as events, coalesce(bool_or(looked > ${bound}), false) as "atLeast",
      coalesce(greatest(extract(epoch from clock_timestamp() - min(oldest)), 0), 0)::float8 as "oldestSeconds"
    from (${parts.join(' union all ')}) looks`
}

function looksOf(s: Standing): Look[] {
  if (s.restored) return everything(s)
  switch (s.kind) {
    case 'events':
      // Nothing of its list is passed yet: what is outside base is all one.
      return s.lastId === '0'
        ? outside(s.afterBase, s.runningInBase, s)
        : [...outside(s.afterTarget, s.runningInTarget, s), ...restOfEpoch(s)]
    case 'parked':
      return outside(s.afterBase, s.runningInBase, s)
    case 'replay':
      return [...outside(s.afterBase, s.runningInBase, s), ...restOfReplay(s)]
    case 'rebase':
      return everything(s)
  }
}

/** What is not visible in a snapshot. Of what lies above the floor no xid is higher than the present ones. */
function outside(after: string, running: readonly string[], { floor, afterNow }: Standing): Look[] {
  const keep = `id > ${floor}`
  const begunAfter = { where: `xid >= '${after}'::xid8 and xid < '${afterNow}'::xid8`, keep }
  return running.length === 0 ? [begunAfter] : [begunAfter, { where: among(running), keep }]
}

/**
 * What of the list is not passed yet. It is ordered by id, the index by xid: the newest xids come first, since nearly all
 * of the highest ids are theirs. Its target was taken before the cursor moved, and holds nothing that came later.
 */
function restOfEpoch(s: Standing): Look[] {
  const { lastId, targetSequence, lateInTarget } = s
  // No row of the list has a higher id than the sequence had; positions of before migration 0007 do not know.
  if (targetSequence !== '0' && BigInt(lastId) >= BigInt(targetSequence)) return []
  const list = { from: 'newest', thereAt: s.movedAtText } as const
  const above = `id > greatest(${lastId}, ${s.floor})`
  const begunAfterBase: Look = {
    ...list,
    where: `xid >= '${s.afterBase}'::xid8 and xid < '${s.afterTarget}'::xid8`,
    keep: `(${above} and pg_visible_in_snapshot(xid, '${s.target}'))`,
  }
  return lateInTarget.length === 0
    ? [begunAfterBase]
    : [begunAfterBase, { ...list, where: among(lateInTarget), keep: above }]
}

/** Snapshots from before the last rebase say nothing about the xids after it: then all of the shard is looked at. */
function restOfReplay(s: Standing): Look[] {
  const list = { from: 'newest', thereAt: s.movedAtText } as const
  const inList = `id > ${s.lastId} and (id <= ${s.floor} or pg_visible_in_snapshot(xid, '${s.base}'))`
  if (s.sinceId !== null) return [{ ...list, where: 'true', keep: `(${inList} and id >= ${s.sinceId})` }]
  if (s.since === null) return [{ ...list, where: 'true', keep: `(${inList})` }]
  const sinceFloor = s.sinceFloor ?? '0'
  const later = `not pg_visible_in_snapshot(xid, '${s.since}')`
  if (BigInt(sinceFloor) < BigInt(s.floor)) {
    const keep = `(${inList} and (id > ${s.floor} or (id > ${sinceFloor} and ${later})))`
    return [{ ...list, where: 'true', keep }]
  }
  const keep = `(${inList} and id > ${s.floor} and ${later})`
  const begunAfter: Look = {
    ...list,
    where: `xid >= '${s.afterSince ?? '3'}'::xid8 and xid < '${s.afterBase}'::xid8`,
    keep,
  }
  return s.runningInSince.length === 0
    ? [begunAfter]
    : [begunAfter, { ...list, where: among(s.runningInSince), keep }]
}

/** While a restored database is not rebased, or is being: by id, since the sequence was restored as well. */
function everything(s: Standing): Look[] {
  const rebasing = s.kind === 'rebase'
  const settled = rebasing ? (s.sinceFloor ?? '0') : s.floor
  const listed = rebasing ? (s.sinceId ?? '0') : s.kind === 'events' ? s.lastId : '0'
  const passedBefore = `(id <= ${settled}
    or (id <= ${s.baseSequence} and pg_visible_in_snapshot(xid, '${s.base}'))
    or (id <= ${s.targetSequence} and id <= ${listed} and pg_visible_in_snapshot(xid, '${s.target}')))`
  const keep = rebasing
    ? `(id > ${s.floor} or (id > ${s.lastId} and not ${passedBefore}))`
    : `(not ${passedBefore})`
  return [{ where: 'true', keep }]
}

function among(xids: readonly string[]): string {
  return `xid in (${xids.map((xid) => `'${xid}'::xid8`).join(', ')})`
}
