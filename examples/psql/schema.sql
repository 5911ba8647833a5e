-- The shop's tables, and a login that may use them and publish and enqueue, and nothing else of Holdfast's.
\set ON_ERROR_STOP on
create table orders (id text primary key, article text not null, pieces int not null);
create table stock (article text primary key, pieces int not null check (pieces >= 0));
create table labels ("order" text not null);
insert into stock values ('teapot', 10);

-- Asked for, since everybody on the machine can read a command line.
\prompt 'password of the login shop: ' password
create role shop login password :'password';
grant insert on orders to shop;
grant select, update on stock to shop;
grant usage on schema holdfast to shop;
grant insert on holdfast.jobs, holdfast.outbox to shop;
grant usage on sequence holdfast.outbox_id to shop;
