-- applies to: the coordinator
-- Which due time of which schedule a job was made for; null: it was enqueued by somebody.

alter table holdfast.jobs
  add column schedule text,
  add column scheduled_for timestamptz;
