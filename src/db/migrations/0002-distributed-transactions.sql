-- applies to: the coordinator
-- One row for each attempt at a distributed transaction; the row, not the gid, holds the decision.

create table holdfast.distributed_transactions (
  attempt uuid primary key,
  name text not null,
  operation text,
  participants text[] not null check (cardinality(participants) > 0),
  status text not null default 'started'
    check (status in ('started', 'pending', 'committing', 'committed', 'rolling_back', 'rolled_back', 'cleaned_up')),
  decision text check (decision in ('commit', 'abort')),
  reason text,
  -- Why an operator has to look; the status and the decision stay what they are.
  quarantine text,
  -- The process that runs it now; null when nobody does (begun by hand and waiting).
  owner text,
  deadline timestamptz not null,
  correlation_id text not null,
  metadata jsonb,
  staged jsonb,
  created_at timestamptz not null default clock_timestamp(),
  updated_at timestamptz not null default clock_timestamp(),
  check ((decision is not null) = (status in ('committing', 'committed', 'rolling_back', 'rolled_back', 'cleaned_up')))
);
-- A name may be staged again only after its last attempt was proved aborted; a committed name stays taken.
create unique index distributed_transactions_name
  on holdfast.distributed_transactions (name) where status not in ('rolled_back', 'cleaned_up');
create index distributed_transactions_history on holdfast.distributed_transactions (name, created_at desc);
create index distributed_transactions_unfinished
  on holdfast.distributed_transactions (status) where status not in ('committed', 'rolled_back', 'cleaned_up');

-- The decision is written once.
create function holdfast.keep_decision() returns trigger language plpgsql as $$
begin
  if old.decision is not null and new.decision is distinct from old.decision then
    raise exception 'the decision % of attempt % is final', old.decision, old.attempt using errcode = 'HF001';
  end if;
  return new;
end $$;
create trigger keep_decision before update on holdfast.distributed_transactions
  for each row execute function holdfast.keep_decision();

create table holdfast.transaction_events (
  id bigint generated always as identity,
  at timestamptz not null default clock_timestamp(),
  event text not null,
  name text not null,
  attempt uuid not null,
  actor text not null,
  correlation_id text,
  detail jsonb,
  primary key (name, id)
);
comment on table holdfast.transaction_events is 'Append-only: who did what to which recorded attempt, and when.';

-- The marker of commit-forward work is its audit row as well: name, attempt, time, and the first half of an attempt id is
-- the process that made it.
create view holdfast.transaction_audit with (security_invoker) as
  select at, event, name, attempt, actor, correlation_id, detail, id from holdfast.transaction_events
  union all
  select at, outcome, forward_name, attempt, left(replace(attempt::text, '-', ''), 16), null, null, null
  from holdfast.transaction_markers where forward_name is not null;
comment on view holdfast.transaction_audit is 'Who did what to which attempt, and when; commit-forward work included.';

-- Seals commit-forward work: as holdfast.seal, for a name that can commit only once.
create procedure holdfast.seal_forward(p_participant text, p_name text) language plpgsql as $$
declare
  v_done text;
begin
  set constraints all immediate;
  insert into holdfast.transaction_markers (attempt, participant, outcome, forward_name)
    values (current_setting('holdfast.attempt')::uuid, p_participant, 'committed', p_name);
  reset all;
  v_done := pg_advisory_unlock_all();
  v_done := set_config('synchronous_commit', 'on', true);
end $$;

-- The lease of each process that stages work. Its id is the first half of the attempt ids that it makes.
create table holdfast.workers (
  id text primary key check (id ~ '^[0-9a-f]{16}$'),
  kind text not null,
  host text not null,
  pid integer not null,
  started_at timestamptz not null default clock_timestamp(),
  lease_until timestamptz not null
);
