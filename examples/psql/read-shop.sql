-- What the primary database has, as one line of JSON.
select json_build_object(
  'orders', (select coalesce(json_agg(id), '[]') from orders),
  'jobs', (select coalesce(json_agg(input ->> 'id'), '[]') from holdfast.jobs),
  'labels', (select coalesce(json_agg("order"), '[]') from labels),
  'published', (select count(*) from holdfast.outbox),
  'taken', (select coalesce(sum(pieces), 0) from orders),
  'pieces', (select sum(pieces) from stock));
