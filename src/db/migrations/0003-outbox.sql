-- applies to: the coordinator
-- The transactional outbox. Rows are appended by the business transaction and read by snapshot difference
-- (docs/adr/0004): never updated, never deleted one by one.

create sequence holdfast.outbox_id as bigint cache 1;

create table holdfast.outbox (
  id bigint not null default nextval('holdfast.outbox_id'),
  xid xid8 not null default pg_current_xact_id(),
  shard smallint not null,
  event_id uuid not null,
  source text not null,
  type text not null,
  subject text,
  partitionkey text,
  time timestamptz not null,
  data jsonb,
  headers jsonb not null default '{}',
  created_at timestamptz not null default clock_timestamp()
) partition by range (created_at);
alter sequence holdfast.outbox_id owned by holdfast.outbox.id;
create table holdfast.outbox_default partition of holdfast.outbox default;
-- The relay's two ranges (new xids, late xids) both start with the shard and the xid. No index is led by id: with
-- one, the planner walks it and filters, a hundred times slower.
create index outbox_shard_xid on holdfast.outbox (shard, xid);

-- The lock of a (sink, shard). Locked by each page, never updated: dead versions of a row that every page changes
-- could not be vacuumed under an old prepared transaction.
create table holdfast.outbox_cursors (
  sink text not null,
  shard smallint not null,
  created_at timestamptz not null default clock_timestamp(),
  primary key (sink, shard)
);

-- Where each cursor stands: the row with the highest no. Appended, thinned in bulk.
create table holdfast.outbox_positions (
  sink text not null,
  shard smallint not null,
  no bigint not null,
  epoch bigint not null,
  base pg_snapshot not null,
  target pg_snapshot not null,
  last_id bigint not null,
  attempt uuid,
  at timestamptz not null default clock_timestamp(),
  primary key (sink, shard, no)
);

-- Appends a position after `expected`, copying what is null from it. Raises when the cursor stands elsewhere: in a
-- pipelined flush a guard that merely matched no row would not stop the PREPARE behind it. The caller has locked the
-- row in outbox_cursors in an earlier statement.
create function holdfast.append_outbox_position(
  p_sink text, p_shard smallint, p_expected bigint, p_last_id bigint, p_attempt uuid,
  p_base pg_snapshot default null, p_target pg_snapshot default null
) returns void language plpgsql as $$
declare
  newest holdfast.outbox_positions;
begin
  select * into strict newest from holdfast.outbox_positions
    where sink = p_sink and shard = p_shard order by no desc limit 1;
  if newest.no <> p_expected then
    raise exception 'outbox cursor %/% stands at %, not at %', p_sink, p_shard, newest.no, p_expected
      using errcode = 'HF001';
  end if;
  -- A base behind the last target would publish again what lies between.
  if p_base is not null and pg_snapshot_xmax(p_base) < pg_snapshot_xmax(newest.target) then
    raise exception 'outbox cursor %/%: base % lies before target %', p_sink, p_shard, p_base, newest.target
      using errcode = 'HF001';
  end if;
  insert into holdfast.outbox_positions (sink, shard, no, epoch, base, target, last_id, attempt)
    values (p_sink, p_shard, p_expected + 1,
            newest.epoch + case when p_target is null then 0 else 1 end,
            coalesce(p_base, newest.base), coalesce(p_target, newest.target), p_last_id, p_attempt);
end $$;

create function holdfast.uuid_v7() returns uuid language sql volatile as $$
  -- RFC 9562: 48 bits of Unix time in milliseconds, version 7, then random bits.
  select encode(
    set_bit(set_bit(
      overlay(uuid_send(gen_random_uuid())
        placing substring(int8send((extract(epoch from clock_timestamp()) * 1000)::bigint) from 3) from 1 for 6),
      52, 1), 53, 1), 'hex')::uuid
$$;

-- Events of one key go to one shard, so that they keep their order. One shard for now.
create function holdfast.outbox_shard(key text) returns smallint language sql immutable as $$ select 0::smallint $$;

-- Appends CloudEvents in the caller's transaction, in the order of the array; returns how many.
create function holdfast.append_events(events jsonb) returns bigint language sql volatile as $$
  with appended as (
    insert into holdfast.outbox (shard, event_id, source, type, subject, partitionkey, time, data, headers)
    select holdfast.outbox_shard(coalesce(e.partitionkey, e.subject)), e.id, e.source, e.type, e.subject,
           coalesce(e.partitionkey, e.subject), e.time, e.data, coalesce(e.headers, '{}')
    from rows from (jsonb_to_recordset(events)
      as (id uuid, source text, type text, subject text, partitionkey text, time timestamptz, data jsonb, headers jsonb))
      with ordinality as e(id, source, type, subject, partitionkey, time, data, headers, position)
    order by e.position
    returning 1
  )
  select count(*) from appended
$$;

-- One event from any language, in the caller's transaction; returns its id.
create function holdfast.publish(type text, subject text, data jsonb, headers jsonb default '{}')
returns uuid language plpgsql volatile as $$
declare
  event_id uuid := holdfast.uuid_v7();
begin
  if publish.type is null or publish.type = '' then
    raise exception 'holdfast.publish needs a type, for example order.placed' using errcode = '22023';
  end if;
  perform holdfast.append_events(jsonb_build_array(jsonb_build_object(
    'id', event_id, 'source', '/holdfast', 'type', publish.type, 'subject', publish.subject,
    'time', clock_timestamp(), 'data', publish.data, 'headers', coalesce(publish.headers, '{}'))));
  return event_id;
end $$;
