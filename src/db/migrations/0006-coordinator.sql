-- applies to: the coordinator
-- What the complete coordinator keeps: votes, compensation, who may finish, slots, what a clean-up did.

alter table holdfast.distributed_transactions
  -- Begun by runDistributed: a later call may take it over and go on.
  add column resumable boolean not null default false,
  -- The services that vote before it commits.
  add column awaits text[] not null default '{}',
  -- The database roles whose members may decide; null: whoever may write this table.
  add column finishers text[],
  add column abort_cause text
    check (abort_cause in ('caller', 'failed', 'vote', 'abandoned', 'deadline', 'by-hand', 'operator')),
  -- Its operation can be compensated; recorded at the begin, since a crash forgets the code.
  add column compensates boolean not null default false,
  add column compensation text not null default 'none' check (compensation in ('none', 'due', 'done', 'failed')),
  add column compensation_failures integer not null default 0,
  add column compensate_after timestamptz,
  add column compensation_error text,
  -- What the effects returned.
  add column result jsonb,
  -- W3C Trace Context of the begin: later spans, in whatever process, join its trace.
  add column traceparent text;
create index distributed_transactions_compensation
  on holdfast.distributed_transactions (compensate_after) where compensation = 'due';
create index distributed_transactions_finished
  on holdfast.distributed_transactions (updated_at) where status in ('committed', 'rolled_back', 'cleaned_up');

create index transaction_events_at on holdfast.transaction_events using brin (at);

-- One row for each awaited service, from the begin. A vote is written once. No foreign key: staged work must not wait.
create table holdfast.transaction_votes (
  attempt uuid not null,
  service text not null,
  token_hash bytea not null,
  vote text check (vote in ('ready', 'abort')),
  reason text,
  actor text,
  voted_at timestamptz,
  primary key (attempt, service)
);
create function holdfast.keep_vote() returns trigger language plpgsql as $$
begin
  if old.vote is not null and new.vote is distinct from old.vote then
    raise exception 'the vote of % is final', old.service using errcode = 'HF001';
  end if;
  return new;
end $$;
create trigger keep_vote before update on holdfast.transaction_votes
  for each row execute function holdfast.keep_vote();

-- A decision is for those whom the transaction names. What was never pending was promised to nobody, and a deadline ends
-- the waiting for everybody.
create function holdfast.check_finisher() returns trigger language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  role_name text;
begin
  if old.decision is not null or new.decision is null or new.finishers is null then return new; end if;
  if old.status = 'started' or (new.decision = 'abort' and old.deadline < clock_timestamp()) then return new; end if;
  foreach role_name in array new.finishers loop
    if role_name = session_user or
       (to_regrole(quote_ident(role_name)) is not null
        and pg_has_role(session_user, to_regrole(quote_ident(role_name)), 'member')) then
      return new;
    end if;
  end loop;
  raise exception '% may not finish %: that is for %', session_user, old.name, array_to_string(new.finishers, ', ')
    using errcode = '42501';
end $$;
create trigger check_finisher before update on holdfast.distributed_transactions
  for each row execute function holdfast.check_finisher();

-- Of the functions below and the one above: pg_temp comes last in their search_path, since what is not named there is
-- searched first, and with it the temporary objects of whoever calls.
--
-- Decides by hand what nobody decided, with who, why and the evidence that was looked at. It runs as the schema's owner,
-- so a role that may call it needs no right to write the tables. False: somebody decided already.
create function holdfast.decide_by_hand(
  p_attempt uuid, p_decision text, p_who text, p_why text, p_evidence jsonb
) returns boolean language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_row holdfast.distributed_transactions;
  v_from text;
begin
  if coalesce(p_why, '') = '' then
    raise exception 'a decision by hand needs a reason' using errcode = '22023';
  end if;
  select * into v_row from holdfast.distributed_transactions where attempt = p_attempt for no key update;
  if v_row.attempt is null or v_row.decision is not null then return false; end if;
  -- Commit only what is prepared everywhere.
  if p_decision = 'commit' and v_row.status <> 'pending' then return false; end if;
  v_from := v_row.status;
  update holdfast.distributed_transactions set
    status = case p_decision when 'commit' then 'committing' else 'rolling_back' end,
    decision = p_decision, reason = p_why, updated_at = clock_timestamp(), quarantine = null,
    abort_cause = case p_decision when 'abort' then 'operator' end,
    compensation = case when p_decision = 'abort' and v_from = 'pending' and compensates then 'due' else compensation end,
    compensate_after = clock_timestamp()
  where attempt = p_attempt;
  insert into holdfast.transaction_events (event, name, attempt, actor, correlation_id, detail)
  values ('decided_by_hand', v_row.name, p_attempt, session_user || '/' || p_who, v_row.correlation_id,
          jsonb_build_object('decision', p_decision, 'why', p_why, 'evidence', p_evidence));
  return true;
end $$;

-- Lets recovery have another look at what was quarantined.
create function holdfast.release_quarantine(p_attempt uuid, p_who text, p_why text)
returns boolean language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_name text;
  v_was text;
begin
  select name, quarantine into v_name, v_was from holdfast.distributed_transactions
    where attempt = p_attempt and (quarantine is not null or compensation = 'failed') for no key update;
  if v_name is null then return false; end if;
  update holdfast.distributed_transactions set quarantine = null, updated_at = clock_timestamp(),
    compensation = case compensation when 'failed' then 'due' else compensation end,
    compensation_failures = 0, compensate_after = clock_timestamp()
  where attempt = p_attempt;
  insert into holdfast.transaction_events (event, name, attempt, actor, detail)
  values ('quarantine_released', v_name, p_attempt, session_user || '/' || p_who,
          jsonb_build_object('why', p_why, 'was', v_was));
  return true;
end $$;

-- Who acts on a gid that has no row, recorded before it happens.
create function holdfast.record_by_hand(
  p_event text, p_name text, p_attempt uuid, p_who text, p_why text, p_evidence jsonb
) returns void language sql security definer set search_path = pg_catalog, pg_temp as $$
  insert into holdfast.transaction_events (event, name, attempt, actor, detail)
  values (p_event, p_name, p_attempt, session_user || '/' || p_who,
          jsonb_build_object('why', p_why, 'evidence', p_evidence))
$$;

revoke execute on function holdfast.decide_by_hand, holdfast.release_quarantine, holdfast.record_by_hand from public;

-- The share of the server's slots for prepared transactions that a process may use, in attempts.
alter table holdfast.workers add column slots integer not null default 0;

-- Renews a lease and grants a share: fair among the live, and never more than the budget less what the others hold and
-- less what has no live process behind it: in doubt, waiting for a hand or for votes, and on this server foreign as well.
-- p_budget is this server's, p_elsewhere that of the scarcest other one. Under a lock, so that two grants never count on
-- the same slot.
create function holdfast.renew_lease(
  p_id text, p_kind text, p_host text, p_pid integer, p_lease interval, p_wants integer, p_budget integer,
  p_elsewhere integer
) returns integer language plpgsql as $$
declare
  v_others integer;
  v_live integer;
  v_loose integer;
  v_foreign integer;
  v_room integer;
  v_granted integer;
begin
  -- The ASCII codes of "HFslots".
  perform pg_advisory_xact_lock(20343400059958387);
  select coalesce(sum(slots), 0), count(*) into v_others, v_live
    from holdfast.workers where lease_until > clock_timestamp() and id <> p_id;
  with prepared as (
    select g.gid, split_part(g.gid, '/', 5) as attempt,
           starts_with(g.gid, (select 'hf1/' || id || '/' from holdfast.installation where coordinator)) as ours
    from pg_prepared_xacts g
  )
  select count(*) filter (where not ours),
         count(distinct attempt) filter (where ours and (
           not exists (select from holdfast.workers w
                       where w.id = substr(attempt, 1, 16) and w.lease_until > clock_timestamp())
           or exists (select from holdfast.distributed_transactions t
                      where t.attempt = case when ours then prepared.attempt::uuid end and t.owner is null)))
    into v_foreign, v_loose from prepared;
  v_room := least(p_budget - v_foreign, p_elsewhere) - v_loose;
  v_granted := greatest(0, least(p_wants, v_room - v_others, greatest(1, v_room / (v_live + 1))));
  insert into holdfast.workers (id, kind, host, pid, lease_until, slots)
    values (p_id, p_kind, p_host, p_pid, clock_timestamp() + p_lease, v_granted)
    on conflict (id) do update set lease_until = excluded.lease_until, slots = excluded.slots;
  return v_granted;
end $$;

-- What a scheduled job did, and when; the newest row is the last success. Appended, thinned after retention.
create table holdfast.job_runs (
  id bigint generated always as identity primary key,
  job text not null,
  at timestamptz not null default clock_timestamp(),
  result jsonb not null
);
-- Not unique: two processes may book the same job in the same microsecond.
create index job_runs_last on holdfast.job_runs (job, at);

-- The timeline of each participant, as an operator or the first look confirmed it. Another one means a promotion or a
-- restore: prepared transactions may be lost or come back, so recovery waits for an operator.
create table holdfast.timelines (
  participant text primary key,
  system_identifier text not null,
  timeline integer not null,
  confirmed_by text not null,
  at timestamptz not null default clock_timestamp()
);
