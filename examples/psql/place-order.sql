-- psql -f place-order.sql -v id=order-1 -v article=teapot -v pieces=2 [-v ask=1]
-- ON_ERROR_STOP ends psql at the first error, with exit code 3; the server rolls back what it had begun.
\set ON_ERROR_STOP on
begin;
insert into orders (id, article, pieces) values (:'id', :'article', :pieces);
select holdfast.publish(
  'order.placed', :'id', jsonb_build_object('article', :'article', 'pieces', :pieces)
) as event_id \gset
select holdfast.enqueue('print-label', jsonb_build_object('id', :'id')) as job_id \gset
-- More than there is: the check of the table fails, and with it all of the above.
update stock set pieces = pieces - :pieces where article = :'article';
\if :{?ask}
  \prompt 'commit? ' yes
  \if :yes
  \else
    rollback;
    \quit
  \endif
\endif
commit;
\echo placed
