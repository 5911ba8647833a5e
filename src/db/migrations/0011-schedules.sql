-- applies to: the coordinator
-- Schedules: which due times are done, whatever the queues forget.

create table holdfast.schedules (
  name text primary key,
  cron text not null,
  tz text not null,
  missed text not null check (missed in ('skip', 'run-once', 'backfill')),
  -- What is enqueued: {"batch": name, "params": …}.
  target jsonb not null,
  -- Every due time until here, inclusive, is enqueued or passed over. It never goes back.
  done_until timestamptz not null default clock_timestamp(),
  -- Grows with each change: whoever decided by an older one changes nothing.
  revision bigint not null default 1,
  -- The newest due time that was enqueued, when that was, and as which job.
  last_due_at timestamptz,
  last_enqueued_at timestamptz,
  last_job_id text,
  -- When a worker last said that its config has this schedule.
  asserted_at timestamptz not null default clock_timestamp()
);

-- Which due time of which schedule a job was made for; null: it was enqueued by somebody.
alter table holdfast.batch_jobs
  add column schedule text,
  add column scheduled_for timestamptz;
