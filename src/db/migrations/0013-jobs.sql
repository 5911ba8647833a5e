-- applies to: the coordinator
-- Users' jobs. The row is the job, the queue only says that it is there: a flushed queue is filled again from here. Never
-- written inside staged work, except by whoever enqueues: whether a job's own work committed, the transaction of its name
-- says (distributed_transactions), and this row follows.

create table holdfast.jobs (
  id text primary key,
  name text not null,
  input jsonb not null,
  -- cancelling: asked for while its transaction is not at its end; whoever has it, or a worker, makes cancelled of it.
  status text not null default 'queued'
    check (status in ('queued', 'running', 'cancelling', 'completed', 'failed', 'cancelled')),
  -- As BullMQ's: 0 comes first, then 1, and so on.
  priority integer not null default 0 check (priority between 0 and 2097152),
  -- Not before this time: the delay that was asked for, or the pause before another attempt.
  run_at timestamptz not null default clock_timestamp(),
  -- Attempts that failed, and how many of them had when it was last redriven.
  attempts integer not null default 0,
  attempts_before integer not null default 0,
  -- How often in a row it ended for reasons that are not its own; they charge no attempt.
  deferrals integer not null default 0,
  -- The newest failures, oldest first: message, SQLSTATE, time and number of the attempt.
  errors jsonb not null default '[]',
  -- The process that runs it, and the number of its run: the fence against one that was taken for dead.
  owner text,
  run bigint not null default 0,
  result jsonb,
  -- No two jobs of one name with the same key are open at once; null: as many as one likes.
  dedup_key text,
  correlation_id text not null,
  created_at timestamptz not null default clock_timestamp(),
  started_at timestamptz,
  finished_at timestamptz
);
create index jobs_due on holdfast.jobs (priority, run_at, id) where status = 'queued';
create index jobs_taken on holdfast.jobs (id) where status in ('running', 'cancelling');
create index jobs_by_name on holdfast.jobs (name, created_at);
create index jobs_by_time on holdfast.jobs (created_at);
create unique index jobs_deduplicated on holdfast.jobs (name, dedup_key)
  where dedup_key is not null and status in ('queued', 'running', 'cancelling');

-- Enqueues a job in the caller's transaction, from any language; returns its id. With `deduplication`, while a job of this
-- name with that key is open, returns that one's id instead.
create function holdfast.enqueue(
  job text, input jsonb, delay_ms bigint default 0, priority integer default 0, deduplication text default null,
  correlation_id text default null
) returns text language plpgsql volatile as $$
declare
  v_id text;
  v_open text;
begin
  -- The same rule as the library's, so that whatever is enqueued can be defined.
  if enqueue.job is null or enqueue.job !~ '^[a-z][a-z0-9-]{0,49}$' then
    raise exception 'holdfast.enqueue needs the name of a job, for example import-orders' using errcode = '22023';
  end if;
  if coalesce(enqueue.delay_ms, 0) < 0 or coalesce(enqueue.priority, 0) not between 0 and 2097152 then
    raise exception 'a delay is 0 ms or more, a priority from 0 (first) to 2097152' using errcode = '22023';
  end if;
  v_id := enqueue.job || '-' || holdfast.uuid_v7();
  if enqueue.deduplication is null then
    insert into holdfast.jobs (id, name, input, priority, run_at, correlation_id)
      values (v_id, enqueue.job, coalesce(enqueue.input, 'null'), coalesce(enqueue.priority, 0),
              clock_timestamp() + coalesce(enqueue.delay_ms, 0) * interval '1 millisecond',
              coalesce(enqueue.correlation_id, gen_random_uuid()::text));
    return v_id;
  end if;
  loop
    insert into holdfast.jobs (id, name, input, priority, run_at, dedup_key, correlation_id)
      values (v_id, enqueue.job, coalesce(enqueue.input, 'null'), coalesce(enqueue.priority, 0),
              clock_timestamp() + coalesce(enqueue.delay_ms, 0) * interval '1 millisecond', enqueue.deduplication,
              coalesce(enqueue.correlation_id, gen_random_uuid()::text))
      on conflict (name, dedup_key) where dedup_key is not null and status in ('queued', 'running', 'cancelling')
      do nothing;
    if found then return v_id; end if;
    select id into v_open from holdfast.jobs
      where name = enqueue.job and dedup_key = enqueue.deduplication and status in ('queued', 'running', 'cancelling');
    -- It may have ended between the two statements.
    if found then return v_open; end if;
  end loop;
end $$;
