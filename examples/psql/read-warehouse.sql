-- Which orders the other database was told of, as one line of JSON.
select coalesce(json_agg(subject order by seq), '[]') from holdfast.inbox;
