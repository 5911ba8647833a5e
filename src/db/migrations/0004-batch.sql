-- applies to: the coordinator
-- Batch jobs. Control (batch_jobs) and position (batch_positions) are apart: a prepared chunk locks what it writes,
-- and whoever pauses a job or asks for its state must not wait for a chunk.

create table holdfast.batch_jobs (
  id text primary key,
  batch text not null,
  params jsonb not null,
  status text not null default 'queued'
    check (status in ('queued', 'running', 'completed', 'failed', 'cancelled')),
  error text,
  correlation_id text not null,
  created_at timestamptz not null default clock_timestamp(),
  started_at timestamptz,
  finished_at timestamptz
);
create index batch_jobs_unfinished on holdfast.batch_jobs (created_at) where status in ('queued', 'running');

-- Chunk n of a range wrote this row in its own transaction. The key makes a stale or doubled worker fail (23505).
create table holdfast.batch_positions (
  job_id text not null,
  range integer not null,
  n bigint not null check (n > 0),
  cursor jsonb not null,
  rows bigint not null,
  rows_total bigint not null,
  last boolean not null,
  attempt uuid not null,
  at timestamptz not null default clock_timestamp(),
  primary key (job_id, range, n)
);
