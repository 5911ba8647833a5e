-- applies to: the coordinator
-- The parts that a batch job's source is cut into, and the runs of each job.

-- Range r lies after "after" up to and including "until"; JSON null stands for the beginning and for the open end. The
-- ranges of a job are made at once, in one transaction. When a range is split, "until" moves in the transaction that takes
-- the range's next number in batch_positions: whoever goes on from that number sees it, and what was read with the old
-- "until" under that number fails (23505).
create table holdfast.batch_ranges (
  job_id text not null,
  range integer not null check (range >= 0),
  after jsonb not null,
  until jsonb not null,
  primary key (job_id, range)
);

-- One row for each time that a worker had a job. Ended null: it runs, or its worker died.
create table holdfast.batch_runs (
  id bigint generated always as identity primary key,
  job_id text not null,
  worker text not null,
  started_at timestamptz not null default clock_timestamp(),
  ended_at timestamptz,
  -- completed, failed, or stopped: let go, to be taken up again
  outcome text check (outcome in ('completed', 'failed', 'stopped')),
  chunks bigint,
  rows bigint
);
create index batch_runs_of_job on holdfast.batch_runs (job_id, id);
