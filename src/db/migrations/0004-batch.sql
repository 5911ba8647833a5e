-- applies to: the coordinator
-- Batch jobs. Control (batch_jobs) and position (batch_positions) are apart: a prepared chunk locks what it writes,
-- and whoever pauses a job or asks for its state must not wait for a chunk.

create table holdfast.batch_jobs (
  id text primary key,
  batch text not null,
  params jsonb not null,
  -- pausing and cancelling are asked for; the run that has the job makes paused and cancelled of them between two chunks.
  status text not null default 'queued' check (status in
    ('queued', 'running', 'pausing', 'paused', 'cancelling', 'cancelled', 'completed', 'failed')),
  -- Two jobs of one batch with the same key may not both be open; null: as many as one likes.
  unique_key text,
  error text,
  -- Why no chunk begins just now, where its definition throttles it.
  hold text,
  -- How many rows the source had at the first start, where it can tell; estimated by the statistics where it is large.
  rows_expected bigint,
  rows_exact boolean,
  correlation_id text not null,
  created_at timestamptz not null default clock_timestamp(),
  started_at timestamptz,
  finished_at timestamptz
);
create index batch_jobs_unfinished on holdfast.batch_jobs (created_at)
  where status in ('queued', 'running', 'pausing', 'cancelling');
create index batch_jobs_by_batch on holdfast.batch_jobs (batch, created_at);
create unique index batch_jobs_unique on holdfast.batch_jobs (batch, unique_key)
  where unique_key is not null and status not in ('completed', 'cancelled');

-- Chunk n of a range wrote this row in its own transaction. The key makes a stale or doubled worker fail (23505).
create table holdfast.batch_positions (
  job_id text not null,
  range integer not null,
  n bigint not null check (n > 0),
  cursor jsonb not null,
  rows bigint not null,
  -- Of these rows, those that were set aside in batch_failures instead of being processed: none, or the one row there is.
  failed bigint not null default 0,
  rows_total bigint not null,
  last boolean not null,
  -- The sum, modulo 2^64, of hashtextextended() of the rows' keys; null where the source cannot be compared by it.
  digest bigint,
  attempt uuid not null,
  at timestamptz not null default clock_timestamp(),
  primary key (job_id, range, n)
);

-- A row that its batch could not process, written by the transaction that passed it over.
create table holdfast.batch_failures (
  id bigint generated always as identity primary key,
  job_id text not null,
  range integer not null,
  n bigint not null,
  row_key jsonb not null,
  -- The position before it: the source reads it again from there.
  cursor jsonb,
  error text not null,
  sqlstate text,
  -- The first 16 hex digits of the SHA-256 of the stack's frames: failures with one cause share it.
  stack_digest text not null,
  -- retry: to be tried again. resolved: processed, together with this step. gone: no longer in the source.
  state text not null default 'failed' check (state in ('failed', 'retry', 'resolved', 'gone')),
  tries integer not null default 1,
  at timestamptz not null default clock_timestamp(),
  resolved_at timestamptz
);
create index batch_failures_of_job on holdfast.batch_failures (job_id, id);
