import { describe, expect, it } from 'vitest'
import { deferred } from '../../src/db/deferred.ts'
import { NoConnectionsError } from '../../src/db/errors.ts'
import { beginDistributed } from '../../src/jobs/begin.ts'
import type { JobContext } from '../../src/jobs/context.ts'
import { commitDistributed } from '../../src/jobs/coordinator.ts'
import { idempotent } from '../../src/jobs/idempotent.ts'
import { newDatabases, openContext } from '../support/database.ts'
import { meeting } from '../support/meeting.ts'

const urls = await newDatabases()
const works = 2
// Who waits for a connection that never comes is ended by the limit, and not by the server's for idle transactions.
const ctx = await openContext(urls, { queries: 2, works, lockTimeoutMs: 60_000, idleTimeoutMs: 600_000 })
const impatient = await openContext(urls, { works, worksWaitMs: 200, idleTimeoutMs: 600_000 })
const alone = await openContext(urls, { works: 1, worksWaitMs: 200, idleTimeoutMs: 600_000 })
const { sql } = ctx.databases.primary
await sql`create table notes (note text not null)`

let serial = 0
const newKey = () => `key_${++serial}`
const callOf = (key: string) => ({ scope: 'notes', key })

const notesLike = async (pattern: string) =>
  (await sql<{ note: string }[]>`select note from notes where note like ${pattern} order by note`).map(
    ({ note }) => note,
  )

/** Calls that take every connection there is for them, and hold it until they are let go. */
async function takeAll(from: JobContext, prefix: string) {
  const go = deferred<void>()
  const begun = Array.from({ length: works }, () => deferred<void>())
  const calls = begun.map((working, i) =>
    idempotent(from, callOf(newKey()), async (tx) => {
      await tx`insert into notes (note) values (${`${prefix}_${i}`})`
      working.resolve()
      await go.promise
      return null
    }),
  )
  await Promise.all(begun.map(({ promise }) => promise))
  return {
    async letGo() {
      go.resolve()
      await Promise.all(calls)
    },
  }
}

describe('connections of idempotent calls', () => {
  it('lets as many calls at once as there are connections begin distributed transactions in their work', async () => {
    const meet = meeting(works)
    const calls = Array.from({ length: works }, (_, i) =>
      idempotent(ctx, callOf(newKey()), async () => {
        await meet()
        const { name } = await beginDistributed(ctx, `within_${i}`, (tx) =>
          tx`insert into notes (note) values (${`within_${i}`})`.then(() => null),
        )
        await commitDistributed(ctx, name)
        return null
      }),
    )
    await Promise.all(calls)
    expect(await notesLike('within%')).toEqual(['within_0', 'within_1'])
  })

  it('leaves other work its connections while calls hold all of theirs', async () => {
    const held = await takeAll(ctx, 'held')
    await beginDistributed(ctx, 'beside', (tx) =>
      tx`insert into notes (note) values ('beside')`.then(() => null),
    )
    await commitDistributed(ctx, 'beside')
    expect(await notesLike('%')).not.toContain('held_0')
    expect(await notesLike('beside')).toEqual(['beside'])
    await held.letGo()
    expect(await notesLike('held%')).toEqual(['held_0', 'held_1'])
  })

  it('replays without a connection of its own', async () => {
    const done = callOf(newKey())
    await idempotent(ctx, done, () => 'done')
    const held = await takeAll(ctx, 'asked')
    expect(await idempotent(ctx, done, () => 'again')).toEqual({ response: 'done', replayed: true })
    await held.letGo()
  })

  it('ends a call that finds no connection in time, and leaves its key free', async () => {
    const held = await takeAll(impatient, 'busy')
    const call = callOf(newKey())
    let ran = 0
    const work = () => ++ran
    await expect(idempotent(impatient, call, work)).rejects.toThrow(NoConnectionsError)
    expect(ran).toBe(0)
    await held.letGo()
    expect(await idempotent(impatient, call, work)).toEqual({ response: 1, replayed: false })
  })

  it('ends a call within the only call that there may be, and the outer one with it', async () => {
    const outer = callOf(newKey())
    const inner = callOf(newKey())
    const nested = idempotent(alone, outer, async (tx) => {
      await tx`insert into notes (note) values ('nested')`
      return (await idempotent(alone, inner, () => 'inner')).response
    })
    await expect(nested).rejects.toThrow(NoConnectionsError)
    expect(await notesLike('nested')).toEqual([])
    expect(await idempotent(alone, outer, () => 'free')).toEqual({ response: 'free', replayed: false })
    expect(await idempotent(alone, inner, () => 'free')).toEqual({ response: 'free', replayed: false })
  })
})
