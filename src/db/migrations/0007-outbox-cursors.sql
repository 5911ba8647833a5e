-- applies to: the coordinator
-- The outbox in shards, what a sink rejected, replays, and databases that were restored.

-- The shard count is fixed at install: another one would send the events of a key to two shards. An installation that has
-- used its outbox already keeps the one shard that it had.
do $$
declare
  v_shards integer := case when exists (select from holdfast.outbox) or exists (select from holdfast.outbox_cursors)
                           then 1 else 4 end;
begin
  execute format('create function holdfast.outbox_shards() returns integer language sql immutable as $f$ select %s $f$',
                 v_shards);
end $$;

drop function holdfast.outbox_shard(text);
-- Events of one key go to one shard, so that they keep their order; those without a key are spread.
create function holdfast.outbox_shard(key text, event_id uuid) returns smallint language sql immutable as $$
  select mod(hashtextextended(coalesce(key, event_id::text), 0) & 9223372036854775807, holdfast.outbox_shards())::smallint
$$;

-- What an epoch's list consists of. events: what is visible in `target` and not in `base`. parked: the rows of
-- outbox_parked that carry its number; last_id counts in their numbers. replay: what is visible in `base` and was not yet
-- at `since` (or from `since_id` on). rebase: see holdfast.rebase_outbox. In the last three `base` is `target`, or is of no
-- meaning: they start and end between two epochs of events.
alter table holdfast.outbox_positions
  add column kind text not null default 'events' check (kind in ('events', 'parked', 'replay', 'rebase')),
  -- Every row up to this id was there when the database was rebased, and is settled apart from its xid.
  add column floor bigint not null default 0,
  -- Values of the sequence when base and target were taken: no row visible in them has a higher id.
  add column base_sequence bigint not null default 0,
  add column target_sequence bigint not null default 0,
  add column since pg_snapshot,
  add column since_floor bigint,
  add column since_id bigint,
  -- Raised by a rebase: what sinks remember of earlier ones is void.
  add column generation integer not null default 1,
  -- Of the server that the snapshots are of.
  add column system_identifier text;

drop function holdfast.append_outbox_position(text, smallint, bigint, bigint, uuid, pg_snapshot, pg_snapshot);

-- The newest position of a cursor, if it is the expected one. Raises when the cursor stands elsewhere: in a pipelined flush
-- a guard that merely matched no row would not stop the PREPARE behind it. The caller has locked the row in outbox_cursors
-- in an earlier statement.
create function holdfast.outbox_position(p_sink text, p_shard smallint, p_expected bigint)
returns holdfast.outbox_positions language plpgsql as $$
declare
  v_newest holdfast.outbox_positions;
begin
  select * into strict v_newest from holdfast.outbox_positions
    where sink = p_sink and shard = p_shard order by no desc limit 1;
  if v_newest.no <> p_expected then
    raise exception 'outbox cursor %/% stands at %, not at %', p_sink, p_shard, v_newest.no, p_expected
      using errcode = 'HF001';
  end if;
  return v_newest;
end $$;

-- One page on.
create function holdfast.advance_outbox(p_sink text, p_shard smallint, p_expected bigint, p_last_id bigint, p_attempt uuid)
returns void language plpgsql as $$
declare
  v_position holdfast.outbox_positions := holdfast.outbox_position(p_sink, p_shard, p_expected);
begin
  v_position.no := p_expected + 1;
  v_position.last_id := p_last_id;
  v_position.attempt := p_attempt;
  v_position.at := clock_timestamp();
  insert into holdfast.outbox_positions select v_position.*;
end $$;

-- The next epoch of events, from p_base to now.
create function holdfast.start_outbox_epoch(
  p_sink text, p_shard smallint, p_expected bigint, p_base pg_snapshot, p_base_sequence bigint
) returns void language plpgsql as $$
declare
  v_position holdfast.outbox_positions := holdfast.outbox_position(p_sink, p_shard, p_expected);
begin
  if v_position.kind <> 'events' then
    raise exception 'outbox cursor %/% is in the middle of %', p_sink, p_shard, v_position.kind using errcode = 'HF001';
  end if;
  -- A base behind the last target would publish again what lies between.
  if pg_snapshot_xmax(p_base) < pg_snapshot_xmax(v_position.target) then
    raise exception 'outbox cursor %/%: base % lies before target %', p_sink, p_shard, p_base, v_position.target
      using errcode = 'HF001';
  end if;
  v_position.no := p_expected + 1;
  v_position.epoch := v_position.epoch + 1;
  v_position.base := p_base;
  v_position.base_sequence := p_base_sequence;
  v_position.target := pg_current_snapshot();
  -- After the snapshot: what is visible in it has its id by now.
  v_position.target_sequence := (select last_value from holdfast.outbox_id);
  v_position.last_id := 0;
  v_position.attempt := null;
  v_position.system_identifier := (select system_identifier::text from pg_control_system());
  v_position.at := clock_timestamp();
  insert into holdfast.outbox_positions select v_position.*;
end $$;

-- Between two epochs of events: everything up to target is passed. Starts an epoch of another kind, or ends one.
create function holdfast.turn_outbox(
  p_sink text, p_shard smallint, p_expected bigint, p_kind text, p_since pg_snapshot default null,
  p_since_floor bigint default null, p_since_id bigint default null
) returns bigint language plpgsql as $$
declare
  v_position holdfast.outbox_positions := holdfast.outbox_position(p_sink, p_shard, p_expected);
begin
  if v_position.kind = 'rebase' then
    -- What was there is published. What came since lies above the floor, whatever its xid: the next epoch starts before
    -- everything.
    v_position.target := '3:3:';
    v_position.target_sequence := 0;
  end if;
  v_position.no := p_expected + 1;
  v_position.kind := p_kind;
  v_position.epoch := v_position.epoch + 1;
  v_position.base := v_position.target;
  v_position.base_sequence := v_position.target_sequence;
  v_position.since := p_since;
  v_position.since_floor := p_since_floor;
  v_position.since_id := p_since_id;
  v_position.last_id := 0;
  v_position.attempt := null;
  v_position.at := clock_timestamp();
  insert into holdfast.outbox_positions select v_position.*;
  return v_position.epoch;
end $$;

-- Whether the cursor that stands at p has passed a row of its shard. What a replay or a rebase is going through counts as
-- not passed, all of it.
create function holdfast.outbox_passed(p holdfast.outbox_positions, p_id bigint, p_xid xid8)
returns boolean language sql stable as $$
  select p.kind in ('events', 'parked') and (
    p_id <= p.floor or pg_visible_in_snapshot(p_xid, p.base)
    or (p.kind = 'events' and p_id <= p.last_id and pg_visible_in_snapshot(p_xid, p.target)))
$$;

-- What a sink rejected, whole events, and the later ones of their keys: they wait behind it. Written by whoever holds the
-- cursor's lock, together with a position.
create table holdfast.outbox_parked (
  sink text not null,
  shard smallint not null,
  -- The order in which they were parked.
  no bigint generated always as identity,
  outbox_id bigint not null,
  event_id uuid not null,
  type text not null,
  partitionkey text,
  event text not null,
  -- How often the sink rejected it, and with what: [{at, reason}], the newest last.
  attempts integer not null default 0,
  errors jsonb not null default '[]',
  parked_at timestamptz not null default clock_timestamp(),
  -- When it is to be tried again; null: it waits behind another of its key.
  retry_at timestamptz,
  -- Given up: it is redriven or discarded by hand.
  dead_at timestamptz,
  -- Whether the later events of its key wait for it.
  holds_key boolean not null default true,
  -- The epoch in whose list it is.
  epoch bigint,
  -- The epoch of the replay in which it was rejected: its messages carry other ids than the first time.
  replay bigint,
  primary key (sink, shard, no)
);
create index outbox_parked_due on holdfast.outbox_parked (sink, shard, retry_at) where dead_at is null;

-- Whether each sink takes what a shard has: what the relay that runs it last said. Written when it changes.
create table holdfast.outbox_circuits (
  sink text not null,
  shard smallint not null,
  -- open: the sink takes nothing now. blocked: it takes all but one event, which holds the shard.
  state text not null check (state in ('closed', 'open', 'blocked')),
  failures integer not null default 0,
  error text,
  since timestamptz not null default clock_timestamp(),
  worker text not null,
  primary key (sink, shard)
);

-- Replays that wait for their cursor to come to the end of its list.
create table holdfast.outbox_replays (
  sink text not null,
  shard smallint not null,
  since pg_snapshot,
  since_floor bigint,
  since_id bigint,
  primary key (sink, shard)
);

-- What was visible when: from these a replay finds what came later than a time. One a minute while events come.
create table holdfast.outbox_snapshots (
  at timestamptz primary key default clock_timestamp(),
  snapshot pg_snapshot not null,
  sequence bigint not null,
  floor bigint not null
);

-- What was done to the outbox by hand, by whom and why.
create table holdfast.outbox_actions (
  id bigint generated always as identity primary key,
  at timestamptz not null default clock_timestamp(),
  action text not null,
  sink text not null,
  actor text not null,
  reason text not null,
  detail jsonb
);

-- The functions below are an operator's. They take the cursor's lock, wait for a page at most as long as lock_timeout says,
-- and append a position, so that a relay that runs steps back and reads again what they changed.

create function holdfast.record_outbox_action(p_action text, p_sink text, p_who text, p_why text, p_detail jsonb)
returns void language plpgsql as $$
begin
  if coalesce(p_why, '') = '' then
    raise exception 'what is done by hand needs a reason' using errcode = '22023';
  end if;
  if not exists (select from holdfast.outbox_cursors where sink = p_sink) then
    raise exception 'no sink % has published anything here', p_sink using errcode = '22023';
  end if;
  insert into holdfast.outbox_actions (action, sink, actor, reason, detail)
    values (p_action, p_sink, session_user || '/' || p_who, p_why, p_detail);
end $$;

-- Locks the cursors of a sink and moves each on by nothing. A statement of its own before any that reads.
create function holdfast.lock_outbox_cursors(p_sink text) returns void language plpgsql as $$
begin
  perform 1 from holdfast.outbox_cursors where sink = p_sink order by shard for update;
end $$;

create function holdfast.touch_outbox_cursors(p_sink text) returns void language plpgsql as $$
declare
  v_position holdfast.outbox_positions;
begin
  for v_position in
    select distinct on (shard) * from holdfast.outbox_positions where sink = p_sink order by shard, no desc
  loop
    v_position.no := v_position.no + 1;
    v_position.attempt := null;
    v_position.at := clock_timestamp();
    insert into holdfast.outbox_positions select v_position.*;
  end loop;
end $$;

-- Gives dead events another chance, in their order: all of the sink's, or those with the given event ids.
create function holdfast.redrive_parked(p_sink text, p_events uuid[], p_who text, p_why text)
returns bigint language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_count bigint;
begin
  perform holdfast.record_outbox_action('redrive', p_sink, p_who, p_why, to_jsonb(p_events));
  perform holdfast.lock_outbox_cursors(p_sink);
  perform holdfast.touch_outbox_cursors(p_sink);
  update holdfast.outbox_parked set dead_at = null, attempts = 0, holds_key = true, retry_at = clock_timestamp()
    where sink = p_sink and dead_at is not null and (p_events is null or event_id = any (p_events));
  get diagnostics v_count = row_count;
  return v_count;
end $$;

-- Drops dead events; what waited behind them goes on.
create function holdfast.discard_parked(p_sink text, p_events uuid[], p_who text, p_why text)
returns bigint language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_count bigint;
begin
  perform holdfast.record_outbox_action('discard', p_sink, p_who, p_why, to_jsonb(p_events));
  perform holdfast.lock_outbox_cursors(p_sink);
  perform holdfast.touch_outbox_cursors(p_sink);
  delete from holdfast.outbox_parked
    where sink = p_sink and dead_at is not null and (p_events is null or event_id = any (p_events));
  get diagnostics v_count = row_count;
  update holdfast.outbox_parked p set retry_at = clock_timestamp()
    where sink = p_sink and dead_at is null and retry_at is null and not exists (
      select from holdfast.outbox_parked e
      where e.sink = p.sink and e.shard = p.shard and e.partitionkey = p.partitionkey and e.no < p.no and e.holds_key);
  return v_count;
end $$;

-- Sends a sink again what became visible after p_since (a time; nothing recorded before it: all that is kept), or what
-- comes in the outbox from the event p_from_event on. Each shard starts when it has come to the end of its list.
create function holdfast.replay_outbox(p_sink text, p_since timestamptz, p_from_event uuid, p_who text, p_why text)
returns void language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_snapshot holdfast.outbox_snapshots;
  v_from bigint;
begin
  perform holdfast.record_outbox_action('replay', p_sink, p_who, p_why,
    jsonb_build_object('since', p_since, 'from', p_from_event));
  if p_from_event is not null then
    select id into v_from from holdfast.outbox where event_id = p_from_event;
    if v_from is null then
      raise exception 'the outbox holds no event % (any more)', p_from_event using errcode = '22023';
    end if;
  elsif p_since is null then
    raise exception 'a replay needs a time or an event to start from' using errcode = '22023';
  else
    select * into v_snapshot from holdfast.outbox_snapshots where at <= p_since order by at desc limit 1;
  end if;
  insert into holdfast.outbox_replays (sink, shard, since, since_floor, since_id)
    select sink, shard, v_snapshot.snapshot, v_snapshot.floor, v_from
    from holdfast.outbox_cursors where sink = p_sink;
exception when unique_violation then
  raise exception 'a replay to % waits already', p_sink using errcode = '55000';
end $$;

-- After the database was restored from a dump: xids began anew, and the snapshots of the cursors say nothing about them.
-- Each cursor goes once through all that it has not passed, by id. The lock on the outbox waits for every writer, prepared
-- ones as well, so what is there now is all that lies at or below the floor.
create function holdfast.rebase_outbox(p_sink text, p_who text, p_why text)
returns bigint language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_position holdfast.outbox_positions;
  v_sequence bigint;
  v_count bigint := 0;
begin
  perform holdfast.record_outbox_action('rebase', p_sink, p_who, p_why, null);
  perform holdfast.lock_outbox_cursors(p_sink);
  lock table holdfast.outbox in share mode;
  select last_value into v_sequence from holdfast.outbox_id;
  for v_position in
    select distinct on (shard) * from holdfast.outbox_positions where sink = p_sink order by shard, no desc
  loop
    v_position.no := v_position.no + 1;
    v_position.epoch := v_position.epoch + 1;
    -- Where the cursor stood in its list; the list of a replay or of parked events is given up, base has all else.
    if v_position.kind <> 'rebase' then
      v_position.since_id := case v_position.kind when 'events' then v_position.last_id else 0 end;
      v_position.since_floor := v_position.floor;
      v_position.last_id := 0;
    end if;
    v_position.kind := 'rebase';
    v_position.floor := v_sequence;
    -- To notice it when the database is restored once more meanwhile.
    v_position.since := pg_current_snapshot();
    v_position.generation := v_position.generation + 1;
    v_position.system_identifier := (select system_identifier::text from pg_control_system());
    v_position.attempt := null;
    v_position.at := clock_timestamp();
    insert into holdfast.outbox_positions select v_position.*;
    v_count := v_count + 1;
  end loop;
  update holdfast.outbox_parked set epoch = null where sink = p_sink;
  return v_count;
end $$;

-- Forgets a sink that is no longer configured: what it has not passed keeps the outbox from being removed.
create function holdfast.forget_sink(p_sink text, p_who text, p_why text)
returns void language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  perform holdfast.record_outbox_action('forget', p_sink, p_who, p_why, null);
  perform holdfast.lock_outbox_cursors(p_sink);
  delete from holdfast.outbox_replays where sink = p_sink;
  delete from holdfast.outbox_parked where sink = p_sink;
  delete from holdfast.outbox_circuits where sink = p_sink;
  delete from holdfast.outbox_positions where sink = p_sink;
  delete from holdfast.outbox_cursors where sink = p_sink;
end $$;

revoke execute on function holdfast.redrive_parked, holdfast.discard_parked, holdfast.replay_outbox,
  holdfast.rebase_outbox, holdfast.forget_sink from public;
