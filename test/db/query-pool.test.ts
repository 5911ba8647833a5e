import { once } from 'node:events'
import { connect, createServer, type Socket } from 'node:net'
import { afterAll, describe, expect, it } from 'vitest'
import { createClient } from '../../src/db/client.ts'
import { QueryPool } from '../../src/db/query-pool.ts'
import { isConnectionLoss } from '../../src/db/sqlstate.ts'
import type { Sql } from '../../src/db/tx.ts'
import { newDatabase } from '../support/database.ts'

const url = await newDatabase()
const reset = await openResettingProxy(new URL(url))
const opened: QueryPool[] = []
afterAll(async () => {
  await Promise.all(opened.map((pool) => pool.end()))
  reset.close()
})

function open(max: number, options: { url?: string; answerMs?: number } = {}): QueryPool {
  const pool = new QueryPool(options.url ?? url, max, options.answerMs ?? 60_000, {})
  opened.push(pool)
  return pool
}

async function numbered(sql: Sql, n: number): Promise<number> {
  const [row] = await sql<{ n: number }[]>`select ${n}::int as n`
  return row!.n
}

/** What a query answers that is given in the very moment in which the one before it learns that the connection is lost. */
function askedAtTheLoss(sql: Sql, n: number): Promise<unknown> {
  return sql.unsafe('select 1 /* cut here */').then(
    () => 'not cut',
    () => numbered(sql, n).catch((error: unknown) => (isConnectionLoss(error) ? 'lost' : error)),
  )
}

/** Resets the connection instead of passing on what says "cut here". */
async function openResettingProxy(target: URL): Promise<{ url: string; close(): void }> {
  const server = createServer((client) => {
    const upstream = connect(Number(target.port), target.hostname)
    for (const socket of [client, upstream]) socket.on('error', () => undefined)
    client.on('data', (chunk) => {
      if (chunk.includes('cut here')) client.resetAndDestroy()
      else upstream.write(chunk)
    })
    upstream.on('data', (chunk) => client.destroyed || client.write(chunk))
    client.on('close', () => upstream.destroy())
    upstream.on('close', () => client.destroy())
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const through = new URL(target)
  through.host = `127.0.0.1:${(server.address() as { port: number }).port}`
  return { url: through.href, close: () => server.close() }
}

describe('single queries', () => {
  it('settle and are answered with what they asked, also when given between the error and the close', async () => {
    const { sql } = open(2, { url: reset.url })
    for (let n = 1; n <= 20; n++) {
      expect([n, 'lost']).toContain(await askedAtTheLoss(sql, n))
      const answers = await Promise.all([1, 2, 3, 4].map((k) => numbered(sql, 10 * n + k)))
      expect(answers).toEqual([1, 2, 3, 4].map((k) => 10 * n + k))
    }
  })

  it("are not left to the driver's own pool, which would never answer that one", async () => {
    const client = createClient(reset.url, { max: 1 })
    let answer: unknown = 'none'
    void askedAtTheLoss(client as unknown as Sql, 1).then((given) => {
      answer = given
    })
    // The connection was made anew and answers, and the query was before this one.
    await expect.poll(() => numbered(client as unknown as Sql, 2).catch(() => 'lost')).toBe(2)
    expect(answer).toBe('none')
    await client.end({ timeout: 0 })
  })

  it('share few connections, and use one where one is enough', async () => {
    const { sql } = open(3)
    const pids = async (queries: number) => {
      const answers = await Promise.all(
        Array.from(
          { length: queries },
          () => sql<{ pid: number }[]>`select pg_backend_pid() as pid, pg_sleep(0.01)`,
        ),
      )
      return new Set(answers.map(([row]) => row!.pid)).size
    }
    await sql`select 1`
    expect(await pids(1)).toBe(1)
    expect(await pids(30)).toBe(3)
    const used = new Set<number>()
    for (let n = 0; n < 10; n++) {
      const [row] = await sql<{ pid: number }[]>`select pg_backend_pid() as pid`
      used.add(row!.pid)
    }
    expect(used.size).toBe(1)
  })

  it('reject while the server cannot be reached, and work once it can', async () => {
    const server = createServer()
    server.listen(0, '127.0.0.1')
    await once(server, 'listening')
    const { port } = server.address() as { port: number }
    server.close()
    await once(server, 'close')
    const away = new URL(url)
    away.port = String(port)
    const { sql } = open(1, { url: away.href })
    await expect(numbered(sql, 1)).rejects.toSatisfy(isConnectionLoss)
    await expect(numbered(sql, 2)).rejects.toSatisfy(isConnectionLoss)
    const target = new URL(url)
    const back = createServer((socket) => {
      socket.on('error', () => undefined)
      const upstream = connect(Number(target.port), target.hostname).on('error', () => undefined)
      socket.pipe(upstream).pipe(socket)
    })
    back.listen(port, '127.0.0.1')
    await once(back, 'listening')
    await expect.poll(() => numbered(sql, 3).catch(() => 'away')).toBe(3)
    await Promise.all(opened.splice(0).map((pool) => pool.end()))
    back.close()
  })

  it('wait for no answer longer than they may, and give up the connection', async () => {
    const { sql } = open(1, { answerMs: 5_000 })
    const [before] = await sql<{ pid: number }[]>`select pg_backend_pid() as pid`
    const slow = sql`select pg_sleep(60)`.then(() => 'woke')
    const behind = numbered(sql, 1)
    behind.catch(() => undefined)
    await expect(slow).rejects.toMatchObject({ code: 'ETIMEDOUT' })
    await expect(behind).rejects.toSatisfy(isConnectionLoss)
    const [after] = await sql<{ pid: number }[]>`select pg_backend_pid() as pid`
    expect(after!.pid).not.toBe(before!.pid)
  })

  it('wait for a server that accepts and says nothing no longer than they may', async () => {
    const sockets: Socket[] = []
    const silent = createServer((socket) => sockets.push(socket)).listen(0, '127.0.0.1')
    await once(silent, 'listening')
    const { port } = silent.address() as { port: number }
    const { sql } = open(1, { url: `postgres://nobody@127.0.0.1:${port}/none`, answerMs: 500 })
    await expect(sql`select 1`).rejects.toMatchObject({ code: 'ETIMEDOUT' })
    for (const socket of sockets) socket.destroy()
    silent.close()
  })

  it('are answered when the pool is closed after them, and refused later', async () => {
    const pool = open(1)
    const asked = pool.sql<{ n: number }[]>`select 7 as n from pg_sleep(0.1)`.then(([row]) => row!.n)
    // A query runs when it is awaited, one tick later.
    await new Promise(setImmediate)
    await pool.end()
    expect(await asked).toBe(7)
    await expect(numbered(pool.sql, 1)).rejects.toMatchObject({ code: 'CONNECTION_ENDED' })
  })
})
