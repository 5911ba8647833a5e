-- applies to: every participant
-- What every database that takes part carries: who takes part, the markers that answer "did it commit here?", and
-- the inbox into which the table sink delivers.

create table holdfast.installation (
  id text primary key check (id ~ '^[0-9a-f]{16}$'),
  coordinator boolean not null,
  -- The name under which this database takes part: two names for one database would answer for each other.
  participant text not null,
  namespace text,
  recorded_at timestamptz not null default clock_timestamp()
);
create unique index installation_one_coordinator on holdfast.installation (coordinator) where coordinator;
comment on table holdfast.installation is
  'The Holdfast installations whose work this database takes part in; at most one keeps its decisions here.';

-- The staged work itself writes the row 'committed' just before its PREPARE, so the row appears exactly when that
-- participant commits. Whoever proves a rollback writes 'aborted' first: then a PREPARE that arrives late fails here.
create table holdfast.transaction_markers (
  attempt uuid not null,
  participant text not null,
  outcome text not null check (outcome in ('committed', 'aborted')),
  -- Set for commit-forward work alone: its name can commit only once.
  forward_name text,
  at timestamptz not null default clock_timestamp()
);
-- Each row is in one of the two: commit-forward work is found by its name, all other by its attempt.
create unique index transaction_markers_attempt
  on holdfast.transaction_markers (attempt, participant) where forward_name is null;
create unique index transaction_markers_forward_name
  on holdfast.transaction_markers (forward_name) where forward_name is not null;

-- Seals staged work, its last act before PREPARE, in one call (statement by statement the same costs a tenth of a short
-- transaction):
-- 1. Deferred constraints fire now rather than in the PREPARE.
-- 2. The marker, by a plain insert, so that a fenced attempt fails here. The attempt comes from the transaction-local
--    setting that BEGIN made: work that ended its own transaction can seal nothing.
-- 3. What the work left in the session goes, locks and settings: a prepared transaction keeps them as a committed one
--    does. (A rolled back one takes its settings along.)
-- 4. Durability is what the protocol needs, whatever a role default says.
create procedure holdfast.seal(p_participant text) language plpgsql as $$
declare
  v_done text;
begin
  set constraints all immediate;
  insert into holdfast.transaction_markers (attempt, participant, outcome)
    values (current_setting('holdfast.attempt')::uuid, p_participant, 'committed');
  reset all;
  -- Expressions, which cost a fraction of the statements PERFORM and SET LOCAL.
  v_done := pg_advisory_unlock_all();
  v_done := set_config('synchronous_commit', 'on', true);
end $$;

-- No unique event id: what keeps an event from arriving twice is that page and cursor commit together. A constraint
-- here would turn a protocol error into a stuck relay; without it, a count shows one.
create table holdfast.inbox (
  seq bigint generated always as identity primary key,
  event_id uuid not null,
  source text not null,
  type text not null,
  subject text,
  partitionkey text,
  time timestamptz not null,
  data jsonb,
  headers jsonb not null,
  received_at timestamptz not null default clock_timestamp()
);
create index inbox_event_id on holdfast.inbox (event_id);
