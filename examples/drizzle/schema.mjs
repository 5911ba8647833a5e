import { integer, jsonb, pgTable, text, timestamp } from 'drizzle-orm/pg-core'

export const orders = pgTable('orders', {
  id: text().primaryKey(),
  article: text().notNull(),
  address: jsonb().notNull(),
  placedAt: timestamp('placed_at', { withTimezone: true }).notNull().defaultNow(),
})

/** What is left of an article: never less than nothing, says a check of the table. */
export const stock = pgTable('stock', { article: text().primaryKey(), pieces: integer().notNull() })

/** Nothing here keeps a second one away: that it is shipped once is the job's doing. */
export const shipments = pgTable('shipments', { order: text().notNull(), address: jsonb().notNull() })

/** A migration of drizzle-kit in a service of its own. */
export const tables = `
  create table orders (
    id text primary key, article text not null, address jsonb not null, placed_at timestamptz not null default now());
  create table stock (article text primary key, pieces int not null check (pieces >= 0));
  create table shipments ("order" text not null, address jsonb not null)`
