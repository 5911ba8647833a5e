-- applies to: the coordinator
-- The outbox as a ring of eight partitions, which are emptied one by one and never made or dropped (docs/adr/0008). It holds
-- events as the text that goes out (docs/adr/0009).

-- Nobody may be writing, in doubt included: what commits into a table that was dropped is lost. A migration that does not
-- get this lock in time fails and changes nothing.
lock table holdfast.outbox in access exclusive mode;
alter sequence holdfast.outbox_id owned by none;
alter table holdfast.outbox rename to outbox_before;
alter index holdfast.outbox_shard_xid rename to outbox_before_shard_xid;

-- The slot that new rows go to. A sequence: reading it costs an append nothing, and a new value is everybody's at once,
-- whatever their snapshot. It says where a row lies, and nothing else depends on it: a row in the wrong slot only stays
-- there longer.
create sequence holdfast.outbox_slot as smallint minvalue 0 maxvalue 7 start 0;
select setval('holdfast.outbox_slot', 0);
-- Whoever may append reads it.
grant select on sequence holdfast.outbox_slot to public;

create table holdfast.outbox (
  id bigint not null default nextval('holdfast.outbox_id'),
  xid xid8 not null default pg_current_xact_id(),
  slot smallint not null default coalesce(pg_sequence_last_value('holdfast.outbox_slot'), 0),
  shard smallint not null,
  event_id uuid not null,
  type text not null,
  -- What orders it: its partitionkey, or else its subject.
  partitionkey text,
  -- The CloudEvent in JSON, exactly as sinks send it.
  event text not null,
  created_at timestamptz not null default clock_timestamp()
) partition by list (slot);
alter sequence holdfast.outbox_id owned by holdfast.outbox.id;
alter sequence holdfast.outbox_slot owned by holdfast.outbox.slot;
-- The relay's two ranges (new xids, late xids) both start with the shard and the xid. No index is led by id: with
-- one, the planner walks it and filters, a hundred times slower.
create index outbox_shard_xid on holdfast.outbox (shard, xid);
comment on table holdfast.outbox is
  'Events, appended in their transactions. Never updated, never deleted: retention truncates a partition as a whole.';

do $$
begin
  for slot in 0..7 loop
    execute format('create table holdfast.outbox_%s partition of holdfast.outbox for values in (%s)', slot, slot);
  end loop;
end $$;

-- A CloudEvent in JSON (structured mode), its attributes in the order in which the library writes them. The headers are its
-- extension attributes.
create function holdfast.cloud_event(
  id uuid, source text, type text, subject text, partitionkey text, "time" timestamptz, data jsonb, headers jsonb
) returns text language sql stable as $$
  select '{"specversion":"1.0","id":"' || id || '","source":' || to_json(source) || ',"type":' || to_json(type)
    || ',"time":' || to_json("time")
    || coalesce(',"subject":' || to_json(subject), '')
    || coalesce(',"partitionkey":' || to_json(partitionkey), '')
    || case when headers = '{}' then '' else ',' || substring(headers::text from 2 for length(headers::text) - 2) end
    || ',"datacontenttype":"application/json","data":' || coalesce(data::text, 'null') || '}'
$$;

-- Whether a header can be an extension attribute of a CloudEvent: lower-case letters and digits, and no attribute that has a
-- meaning of its own.
create function holdfast.is_extension(name text) returns boolean language sql immutable as $$
  select name ~ '^[a-z0-9]+$' and name not in ('specversion', 'id', 'source', 'type', 'time', 'subject', 'partitionkey',
    'datacontenttype', 'dataschema', 'data')
$$;

insert into holdfast.outbox (id, xid, shard, event_id, type, partitionkey, event, created_at)
  select id, xid, shard, event_id, type, partitionkey,
         holdfast.cloud_event(event_id, source, type, subject, partitionkey, time, data, coalesce(
           (select jsonb_object_agg(key, value) from jsonb_each(headers) where holdfast.is_extension(key)), '{}')),
         created_at
  from holdfast.outbox_before;
drop table holdfast.outbox_before;

-- The most that an event may take, in bytes of its JSON: a page of the relay is held in memory.
create function holdfast.outbox_max_bytes() returns integer language sql immutable as $$ select 1048576 $$;

-- Appends complete CloudEvents in the caller's transaction, in the order of the array; returns how many. The text of each
-- stays as it is, which is why this takes json and not jsonb.
drop function holdfast.append_events(jsonb);
create function holdfast.append_events(events json) returns bigint language plpgsql volatile as $$
declare
  v_appended bigint;
  v_large record;
begin
  -- Only a list that is larger as a whole can hold an event that is.
  if octet_length(events::text) > holdfast.outbox_max_bytes() then
    select e ->> 'id' as id, octet_length(e::text) as bytes into v_large
      from json_array_elements(events) e where octet_length(e::text) > holdfast.outbox_max_bytes() limit 1;
    if found then
      raise exception 'the event % takes % bytes, the outbox takes % at most', v_large.id, v_large.bytes,
        holdfast.outbox_max_bytes()
        using errcode = '54000', hint = 'Store its data elsewhere and publish a reference to it.';
    end if;
  end if;
  insert into holdfast.outbox (shard, event_id, type, partitionkey, event)
    select holdfast.outbox_shard(coalesce(e.partitionkey, e.subject), e.id), e.id, e.type,
           coalesce(e.partitionkey, e.subject), element.event::text
    from json_array_elements(events) with ordinality as element(event, position),
         json_to_record(element.event) as e(id uuid, type text, subject text, partitionkey text)
    order by element.position;
  get diagnostics v_appended = row_count;
  return v_appended;
end $$;

create or replace function holdfast.publish(type text, subject text, data jsonb, headers jsonb default '{}')
returns uuid language plpgsql volatile as $$
declare
  v_id uuid := holdfast.uuid_v7();
  v_headers jsonb := coalesce(publish.headers, '{}');
  v_refused text;
begin
  if publish.type is null or publish.type = '' then
    raise exception 'holdfast.publish needs a type, for example order.placed' using errcode = '22023';
  end if;
  if jsonb_typeof(v_headers) <> 'object' then
    raise exception 'the headers of an event are a JSON object, not of type %', jsonb_typeof(v_headers)
      using errcode = '22023';
  end if;
  if v_headers <> '{}' then
    select key into v_refused from jsonb_each(v_headers)
      where not holdfast.is_extension(key) or jsonb_typeof(value) not in ('string', 'number', 'boolean') limit 1;
    if found then
      raise exception 'the header % cannot be an attribute of a CloudEvent', to_json(v_refused)
        using errcode = '22023', hint = 'A name has lower-case letters and digits only and is not one of CloudEvents itself;'
          ' a value is a string, a number or a boolean.';
    end if;
  end if;
  perform holdfast.append_events(('[' || holdfast.cloud_event(v_id, '/holdfast', publish.type, publish.subject,
    publish.subject, clock_timestamp(), publish.data, v_headers) || ']')::json);
  return v_id;
end $$;

-- Whether the cursor that stands at p needs a row no more. Stricter than passed: a row that came after the base was taken
-- has a higher id than there was then, so where it is visible in the base all the same, the database was restored, xids
-- began anew, and the base says nothing about it.
create function holdfast.outbox_removable(p holdfast.outbox_positions, p_id bigint, p_xid xid8)
returns boolean language sql stable as $$
  select holdfast.outbox_passed(p, p_id, p_xid)
    and (p_id <= p.floor or p_id <= p.base_sequence or not pg_visible_in_snapshot(p_xid, p.base))
$$;
