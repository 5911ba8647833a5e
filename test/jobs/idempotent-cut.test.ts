import { afterAll, describe, expect, it } from 'vitest'
import { HoldfastError, UnknownOutcomeError } from '../../src/db/errors.ts'
import { isConnectionLoss } from '../../src/db/sqlstate.ts'
import type { Tx } from '../../src/db/tx.ts'
import { idempotent } from '../../src/jobs/idempotent.ts'
import { newDatabases, openContext } from '../support/database.ts'
import { type Statement, TcpProxy, type When } from '../support/tcp-proxy.ts'

/** The connection is cut at each statement of a call. Whatever the caller was told, the work is done once. */
const urls = await newDatabases()
const heir = await openContext(urls)
const proxy = await TcpProxy.open(urls.primary!)
afterAll(() => proxy.close())
const ctx = await openContext({ primary: proxy.url })
const { sql } = heir.databases.primary
await sql`create table orders (id int generated always as identity, key text not null)`

const orderFor = (key: string) => async (tx: Tx) => {
  const [row] = await tx<{ id: number }[]>`insert into orders (key) values (${key}) returning id`
  return { order: row!.id }
}
const call = (key: string) => ({ scope: 'orders', key, fingerprint: 1 })

const says =
  (text: RegExp) =>
  (statement: Statement): boolean =>
    text.test(statement.text)
const completion = says(/complete_idempotency_key/)
const atCommit = ({ text }: Statement, earlier: readonly Statement[]) =>
  text === 'COMMIT' && earlier.some(completion)

const kinds = {
  'the claim': says(/claim_idempotency_key/),
  BEGIN: says(/^BEGIN.*holdfast\.claim/),
  'the work': says(/^insert into orders/),
  'the completion': completion,
  COMMIT: atCommit,
}
const whens: When[] = ['before', 'after', 'at-once']
const cases = Object.keys(kinds).flatMap((what) =>
  whens.map((when) => ({ what: what as keyof typeof kinds, when })),
)

async function ordersOf(key: string): Promise<number[]> {
  return (await sql<{ id: number }[]>`select id from orders where key = ${key}`).map(({ id }) => id)
}

let serial = 0

describe.each(cases)('cut at $what, $when', ({ what, when }) => {
  it('does the work once, whoever calls again', async () => {
    const key = `key_${++serial}`
    const struck = proxy.arm({ match: kinds[what], when })
    const first = await idempotent(ctx, call(key), orderFor(key)).catch((error: unknown) => error as Error)
    await struck
    if (first instanceof Error) {
      if (!(first instanceof HoldfastError) && !isConnectionLoss(first)) throw first
      expect(await ordersOf(key)).toEqual([])
      // Of a claim nobody knows; any other was given up, for good.
      if (what === 'the claim') {
        await sql`update holdfast.idempotency_keys set lease_until = clock_timestamp() where key = ${key}`
      }
    } else {
      expect(await ordersOf(key)).toEqual([first.response.order])
    }
    // What was done and only not answered is no error.
    if (what === 'COMMIT' && when === 'after') expect(first).toMatchObject({ replayed: false })
    if (what === 'COMMIT' && when === 'before') expect(first).toBeInstanceOf(Error)
    // A claim that comes late (its connection was cut when it was on its way) is there at most for its lease.
    await expect
      .poll(
        async () => {
          if (what === 'the claim')
            await sql`update holdfast.idempotency_keys set lease_until = clock_timestamp() where key = ${key} and response is null`
          return idempotent(heir, call(key), orderFor(key)).then(
            ({ replayed }) => replayed,
            (error: Error) => error.message,
          )
        },
        { interval: 20 },
      )
      .toBe(!(first instanceof Error))
    const orders = await ordersOf(key)
    expect(orders).toHaveLength(1)
    // The process that was cut goes on with the same pools.
    expect(await idempotent(ctx, call(key), orderFor(key))).toEqual({
      response: { order: orders[0] },
      replayed: true,
    })
  })
})

describe('a commit that nobody answers for', () => {
  it.each([
    { when: 'after' as const, kept: true },
    { when: 'before' as const, kept: false },
  ])('cut $when it, is of unknown outcome until the database can be asked', async ({ when, kept }) => {
    const key = `key_${++serial}`
    const cut = proxy.arm({ match: atCommit, when })
    const first = idempotent(ctx, call(key), orderFor(key))
    first.catch(() => undefined)
    await cut
    void proxy.arm({ match: () => true, when: 'before', times: 1_000_000 })
    try {
      await expect(first).rejects.toThrow(UnknownOutcomeError)
    } finally {
      proxy.disarm()
    }
    expect(await ordersOf(key)).toHaveLength(kept ? 1 : 0)
    await sql`update holdfast.idempotency_keys set lease_until = clock_timestamp() where key = ${key} and response is null`
    expect((await idempotent(heir, call(key), orderFor(key))).replayed).toBe(kept)
    expect(await ordersOf(key)).toHaveLength(1)
  })
})
