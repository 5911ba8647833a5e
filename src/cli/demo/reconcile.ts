import type { Databases } from '../../db/databases.ts'

/** What the demo proves, computed by SQL from source, target and inbox. */
export type Reconciliation = {
  rows: { expected: number; imported: number; missing: number; doubled: number }
  events: { expected: number; delivered: number; missing: number; doubled: number }
}

export async function reconcile(databases: Databases): Promise<Reconciliation> {
  const { primary } = databases
  const [rows] = await primary.sql<Reconciliation['rows'][]>`
    with imported as (select flight_id, count(*) as times from flights group by flight_id)
    select count(s.id)::int as expected, count(s.id) filter (where i.flight_id is not null)::int as imported,
           count(s.id) filter (where i.flight_id is null)::int as missing,
           coalesce(sum(i.times - case when s.id is null then 0 else 1 end), 0)::int as doubled
    from raw_flights s full join imported i on i.flight_id = s.id`
  const source = await primary.sql<
    { subject: string }[]
  >`select 'flight-' || id as subject from raw_flights order by id`
  const target = databases.get('target')
  // The expected events are the source's rows, sent to the other database to be compared there.
  const [events] = await target.sql<Reconciliation['events'][]>`
    with expected as (select jsonb_array_elements_text(${JSON.stringify(source.map((r) => r.subject))}::text::jsonb) as subject),
         delivered as (select subject, count(*) as times from holdfast.inbox where type = 'flight.imported' group by subject)
    select count(e.subject)::int as expected, count(e.subject) filter (where d.subject is not null)::int as delivered,
           count(e.subject) filter (where d.subject is null)::int as missing,
           coalesce(sum(d.times - case when e.subject is null then 0 else 1 end), 0)::int as doubled
    from expected e full join delivered d using (subject)`
  if (!rows || !events) throw new Error('the reconciliation returned nothing')
  return { rows, events }
}

/** Every prepared transaction in the demo's databases, whoever made it. */
export async function countPrepared(databases: Databases): Promise<number> {
  const [row] = await databases.primary.sql<{ count: number }[]>`
    select count(*)::int as count from pg_catalog.pg_prepared_xacts
    where database in ${databases.primary.sql(databases.all.map((p) => new URL(p.url).pathname.slice(1)))}`
  return row?.count ?? 0
}

export async function readProgress(
  databases: Databases,
): Promise<{ rows: number; events: number; completed: boolean }> {
  const [batch] = await databases.primary.sql<{ rows: string | null; completed: boolean }[]>`
    select (select rows_total from holdfast.batch_positions order by n desc limit 1) as rows,
           exists (select from holdfast.batch_jobs where status = 'completed') as completed`
  const [inbox] = await databases.get('target').sql<{ count: string }[]>`select count(*) from holdfast.inbox`
  return {
    rows: Number(batch?.rows ?? 0),
    events: Number(inbox?.count ?? 0),
    completed: batch?.completed === true,
  }
}
