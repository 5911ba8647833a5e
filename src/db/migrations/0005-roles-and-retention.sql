-- applies to: every participant
-- Who owns the gids, and what retention removes.

-- The NOLOGIN role that every prepared transaction of this installation belongs to here, so that rotating a login
-- orphans nothing; null: each belongs to the login that prepared it.
alter table holdfast.installation add column owner_role text check (owner_role ~ '^[a-z_][a-z0-9_]{0,62}$');

-- Rows come in the order of their time, so the smallest of indexes finds the old ones.
create index transaction_markers_at on holdfast.transaction_markers using brin (at);
