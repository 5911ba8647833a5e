import { appendEvents, type NewEvent } from '../../src/db/outbox.ts'
import type { OutboxHand } from '../../src/db/outbox-actions.ts'
import { type Step, watchSteps } from '../../src/db/steps.ts'
import type { JobContext } from '../../src/jobs/context.ts'

/** What tests of the relay do by hand: append, look at what is parked, let time pass, hold it at a step. */

export const hand: OutboxHand = { who: 'test', why: 'the receiver was mended' }

/** Appends numbered events of one key, each in a transaction of its own. Returns their event ids. */
export async function append(ctx: JobContext, key: string | null, ...numbers: number[]): Promise<string[]> {
  const ids: string[] = []
  for (const n of numbers) ids.push(...(await appendTogether(ctx, [[key, n]])))
  return ids
}

/** Appends in one transaction. */
export async function appendTogether(
  ctx: JobContext,
  events: readonly (readonly [string | null, number])[],
): Promise<string[]> {
  return ctx.databases.primary.transaction((tx) =>
    appendEvents(
      tx,
      events.map(([key, n]) => numberedEvent(key, n)),
    ),
  )
}

export function numberedEvent(key: string | null, n: number): NewEvent {
  return { type: 'test.counted', ...(key === null ? {} : { partitionkey: key }), data: { n } }
}

export type ParkedRow = {
  n: number
  key: string | null
  attempts: number
  reasons: string[]
  dead: boolean
  due: boolean | null
  holds: boolean
}

/** The parked list, in its order. */
export async function parked({ databases: { primary } }: JobContext): Promise<ParkedRow[]> {
  return primary.sql<ParkedRow[]>`
    select (event::json #>> '{data,n}')::int as n, partitionkey as key, attempts, dead_at is not null as dead, holds_key as holds,
      array(select e->>'reason' from jsonb_array_elements(errors) e) as reasons, retry_at <= clock_timestamp() as due
    from holdfast.outbox_parked order by no`
}

/** Lets the back-off of what is parked run out. */
export async function makeDue({ databases: { primary } }: JobContext): Promise<void> {
  await primary.sql`update holdfast.outbox_parked set retry_at = clock_timestamp() where retry_at is not null`
}

/** From now on what is parked waits for its next try for longer than any machine takes for a test, or until `makeDue`. */
export async function putOffRetries({ databases: { primary } }: JobContext): Promise<void> {
  await primary.sql`
    create function put_off_retry() returns trigger language plpgsql as $$ begin
      if new.retry_at > clock_timestamp() then new.retry_at := new.retry_at + interval '1 hour'; end if;
      return new;
    end $$`
  await primary.sql`
    create trigger put_off_retry before insert or update on holdfast.outbox_parked
    for each row execute function put_off_retry()`
}

export async function shardOf({ databases: { primary } }: JobContext, key: string): Promise<number> {
  const [row] = await primary.sql<
    { shard: number }[]
  >`select holdfast.outbox_shard(${key}, null)::int as shard`
  return row?.shard ?? 0
}

/** Keys of the same shard as the first, and one of another shard. */
export async function keysBesides(ctx: JobContext, key: string): Promise<{ same: string; other: string }> {
  const shard = await shardOf(ctx, key)
  const found: { same?: string; other?: string } = {}
  for (let i = 0; found.same === undefined || found.other === undefined; i++) {
    const one = `key${i}`
    if ((await shardOf(ctx, one)) === shard) found.same ??= one
    else found.other ??= one
  }
  return { same: found.same, other: found.other }
}

/** Lets something run up to a step and holds it there. */
export async function holdAt<T>(
  step: Step,
  start: () => Promise<T>,
): Promise<{ running: Promise<T>; release: () => void }> {
  let release = () => {}
  let running: Promise<T> | undefined
  await new Promise<void>((resolve) => {
    watchSteps({
      steps: new Set([step]),
      reached: () => {
        watchSteps(undefined)
        resolve()
        return new Promise<void>((go) => {
          release = go
        })
      },
    })
    running = start()
  })
  if (!running) throw new Error('was not started')
  return { running, release: () => release() }
}
