-- applies to: every participant
-- Which events a consumer has seen. The consumer's own transaction inserts the row (conflict: seen), so it exists exactly
-- if what the consumer did with the event does.

create table holdfast.inbox_seen (
  consumer text not null,
  event_id text not null,
  seen_at timestamptz not null default clock_timestamp(),
  primary key (consumer, event_id)
);
-- Rows come in the order of their time, so the smallest of indexes finds the old ones, and costs an insert next to nothing.
create index inbox_seen_at on holdfast.inbox_seen using brin (seen_at);
