-- The role model, for psql or `holdfast migrate --roles`; in every participating database. Needs CREATEROLE while the
-- roles do not exist, and the schema's owner. Running it again changes nothing; every later migrate does.
--
--   holdfast_owner     owns every prepared transaction; has no other right, and nobody logs in as it
--   holdfast_app       what applications and workers log in as a member of: stages, finishes by the protocol
--   holdfast_operator  decides by hand, through audited functions that holdfast_app may not call, and drives it on
--   holdfast_reader    looks
do $$
declare
  v_role text;
  v_granted text;
begin
  -- Roles belong to the cluster, and another database of it may be doing the same just now: whoever is faster, it stands.
  foreach v_role in array array['holdfast_owner', 'holdfast_app', 'holdfast_operator', 'holdfast_reader'] loop
    if to_regrole(v_role) is null then
      begin
        execute format('create role %I nologin', v_role);
      exception when duplicate_object or unique_violation then null;
      end;
    end if;
  end loop;
  -- Whoever finishes a prepared transaction has to become its owner for that statement.
  foreach v_granted in array array['holdfast_owner', 'holdfast_reader'] loop
    foreach v_role in array array['holdfast_app', 'holdfast_operator'] loop
      if not exists (select from pg_auth_members
                     where roleid = to_regrole(v_granted) and member = to_regrole(v_role)) then
        begin
          execute format('grant %I to %I', v_granted, v_role);
        exception when unique_violation then null;  -- before PostgreSQL 16
        end;
      end if;
    end loop;
  end loop;
end $$;

grant usage on schema holdfast to holdfast_reader;
grant select on all tables in schema holdfast to holdfast_reader;

-- What each role may write, table by table; a table that stands here nowhere is read only.
do $$
declare
  v_table regclass;
  v_app text;
  v_operator text;
  v_columns text;
begin
  for v_table, v_app, v_operator in
    select c.oid::regclass, w.app, w.operator
    from (values
      -- Never changed; retention locks what it removes, for which the lock asks for the right to update some column.
      ('transaction_markers', 'insert, delete, update (at)', 'insert'),
      ('inbox_seen', 'insert, delete, update (seen_at)', null),
      ('inbox', 'insert, delete', null),
      ('idempotency_keys', 'insert, update, delete', null),
      ('distributed_transactions', 'insert, delete', 'update (status, decision, reason, abort_cause, quarantine, staged,
        result, owner, updated_at, compensation, compensate_after)'),
      -- Appended to, by the server's clock; retention removes what is old.
      ('transaction_events', 'insert (event, name, attempt, actor, correlation_id, detail), delete',
        'insert (event, name, attempt, actor, correlation_id, detail)'),
      ('transaction_votes', 'insert, delete, update (vote, reason, actor, voted_at)', null),
      ('workers', 'insert, update, delete', null),
      ('job_runs', 'insert, delete', null),
      ('schedules', 'insert, update, delete', null),
      -- A new timeline is an operator's to confirm; the first look only records.
      ('timelines', 'insert', 'insert, update'),
      -- Appended to; retention truncates the partitions, one by one.
      ('outbox', 'insert', null),
      ('outbox_0', 'truncate', null), ('outbox_1', 'truncate', null), ('outbox_2', 'truncate', null),
      ('outbox_3', 'truncate', null), ('outbox_4', 'truncate', null), ('outbox_5', 'truncate', null),
      ('outbox_6', 'truncate', null), ('outbox_7', 'truncate', null),
      -- Locked, never changed.
      ('outbox_cursors', 'insert, update (created_at)', null),
      ('outbox_positions', 'insert, delete', null),
      -- Whoever holds the cursor's lock.
      ('outbox_parked', 'insert, update, delete', null),
      ('outbox_circuits', 'insert, update', null),
      ('outbox_replays', 'delete', null),
      ('outbox_snapshots', 'insert, delete', null),
      -- Written by the operator's functions alone; retention removes what is old.
      ('outbox_actions', 'delete', null),
      ('jobs', 'insert, update, delete', null),
      ('batch_jobs', 'insert, update', null),
      ('batch_positions', 'insert', null),
      ('batch_ranges', 'insert, update (until)', null),
      ('batch_runs', 'insert, update (ended_at, outcome, chunks, rows)', null),
      ('batch_failures', 'insert, update', null)
    ) w (name, app, operator)
    join pg_class c on c.oid = to_regclass('holdfast.' || w.name)
  loop
    execute format('revoke all on %s from holdfast_app, holdfast_operator', v_table);
    execute format('grant %s on %s to holdfast_app', v_app, v_table);
    if v_operator is not null then execute format('grant %s on %s to holdfast_operator', v_operator, v_table); end if;
  end loop;

  -- What a transaction said at its begin stays as it was said, above all who may finish it.
  if to_regclass('holdfast.distributed_transactions') is not null then
    select string_agg(quote_ident(attname), ', ') into v_columns from pg_attribute
    where attrelid = 'holdfast.distributed_transactions'::regclass and attnum > 0 and not attisdropped
      and attname not in ('attempt', 'name', 'operation', 'participants', 'resumable', 'awaits', 'finishers',
                          'compensates', 'correlation_id', 'traceparent', 'metadata', 'created_at');
    execute format('grant update (%s) on holdfast.distributed_transactions to holdfast_app', v_columns);
    grant usage, select on sequence holdfast.outbox_id to holdfast_app;
    grant usage on sequence holdfast.idempotency_token to holdfast_app;
    grant update on sequence holdfast.outbox_slot to holdfast_app;
  end if;
end $$;

-- What grants cannot say, in the coordinator.
do $$
begin
  if to_regclass('holdfast.distributed_transactions') is null then return; end if;
  -- An operator decides through decide_by_hand alone, so that it is audited; what is decided it may drive to the end.
  -- Whoever may begin a transaction may decide one.
  create or replace function holdfast.check_operator() returns trigger
  language plpgsql set search_path = pg_catalog, pg_temp as $f$
  begin
    if not has_table_privilege(current_user, tg_relid, 'insert') then
      raise exception '% may decide % by hand alone', session_user, old.name using errcode = '42501';
    end if;
    return new;
  end $f$;
  -- Once: it takes the table's lock.
  if not exists (select from pg_trigger where tgrelid = 'holdfast.distributed_transactions'::regclass
                 and tgname = 'check_operator') then
    create trigger check_operator before update on holdfast.distributed_transactions
      for each row when (old.decision is null) execute function holdfast.check_operator();
  end if;
  -- The audit. What was done by hand is written by the operator's functions alone, and nobody removes what is younger
  -- than a day. Who may read and write at all is for the grants to say; the schema's owner is not bound.
  if not (select relrowsecurity from pg_class where oid = 'holdfast.transaction_events'::regclass) then
    create policy anyone_reads on holdfast.transaction_events for select using (true);
    create policy nothing_by_hand on holdfast.transaction_events for insert with check (true);
    create policy old_goes on holdfast.transaction_events for delete
      using (at < clock_timestamp() - interval '1 day');
    alter table holdfast.transaction_events enable row level security;
  end if;
  -- Not each time: it takes the whole table.
  if not exists (select from pg_policies where schemaname = 'holdfast' and policyname = 'nothing_by_hand'
                 and with_check like '%compensated_by_hand%') then
    alter policy nothing_by_hand on holdfast.transaction_events
      with check (event <> all ('{decided_by_hand,finished_by_hand,quarantine_released,compensated_by_hand}'));
  end if;
end $$;

-- Functions that run with their caller's rights are the application's; those that run with the owner's are an operator's.
do $$
declare
  v_function regprocedure;
  v_as_owner boolean;
begin
  for v_function, v_as_owner in
    select p.oid::regprocedure, p.prosecdef from pg_proc p
    where p.pronamespace = 'holdfast'::regnamespace
  loop
    if v_as_owner then
      execute format('revoke execute on routine %s from public, holdfast_app', v_function);
      execute format('grant execute on routine %s to holdfast_operator', v_function);
    else
      execute format('grant execute on routine %s to holdfast_app', v_function);
    end if;
  end loop;
end $$;

-- The queues, where they are on PostgreSQL.
do $$
declare
  v_schema text := 'holdfast_bullmq';
begin
  if to_regnamespace(v_schema) is not null then
    execute format('grant usage on schema %I to holdfast_app', v_schema);
    execute format('grant select, insert, update, delete on all tables in schema %I to holdfast_app', v_schema);
    execute format('grant usage on all sequences in schema %I to holdfast_app', v_schema);
    execute format('grant execute on all routines in schema %I to holdfast_app', v_schema);
  end if;
end $$;

update holdfast.installation set owner_role = 'holdfast_owner' where owner_role is null;
