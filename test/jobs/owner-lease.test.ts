import { describe, expect, it } from 'vitest'
import { newDatabases, openContext } from '../support/database.ts'

describe('the lease of a process', () => {
  it('is taken by one statement, however many pieces of work begin at once', async () => {
    const { lease, databases } = await openContext(await newDatabases())
    const { sql } = databases.primary
    await sql.unsafe(`
      create table taken (id text);
      create function count_taken() returns trigger language plpgsql as
        $$ begin insert into public.taken values (new.id); return new; end $$;
      create trigger count_taken after insert or update on holdfast.workers
        for each row execute function count_taken()`)
    await Promise.all(Array.from({ length: 8 }, () => lease.hold()))
    expect(await sql`select id from taken`).toEqual([{ id: lease.id }])
  })

  it('does not outlive its end, although work was just beginning', async () => {
    const { lease, databases } = await openContext(await newDatabases())
    const held = lease.hold()
    await lease.end()
    await held
    expect(await databases.primary.sql`select id from holdfast.workers`).toEqual([])
  })

  it('is asked for again when it was refused', async () => {
    const { lease, databases } = await openContext(await newDatabases())
    const { sql } = databases.primary
    await sql`alter table holdfast.workers rename to away`
    const refused = await Promise.allSettled([lease.hold(), lease.hold()])
    expect(refused.map(({ status }) => status)).toEqual(['rejected', 'rejected'])
    await sql`alter table holdfast.away rename to workers`
    await lease.hold()
    expect(await sql`select id from holdfast.workers`).toEqual([{ id: lease.id }])
  })
})
