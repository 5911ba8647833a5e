import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { describe, expect, it, onTestFinished } from 'vitest'
import { appendEvents } from '../../src/db/outbox.ts'
import { forgetSink } from '../../src/db/outbox-actions.ts'
import type { JobContextOptions } from '../../src/jobs/context.ts'
import { watchOutbox } from '../../src/jobs/outbox-alerts.ts'
import { newDatabases, openContext } from '../support/database.ts'
import { HandCursor } from '../support/outbox-cursor.ts'

type Alert = { kind: string; subject: string; message: string }

/** A webhook that keeps what it gets. */
async function webhook(): Promise<{ url: string; alerts: Alert[] }> {
  const alerts: Alert[] = []
  const server = createServer((request, response) => {
    let body = ''
    request.on('data', (chunk: Buffer) => {
      body += chunk.toString()
    })
    request.on('end', () => {
      alerts.push(JSON.parse(body) as Alert)
      response.end()
    })
  }).listen(0, '127.0.0.1')
  await new Promise((resolve) => server.once('listening', resolve))
  onTestFinished(() => void server.close())
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, alerts }
}

async function open(options: Partial<JobContextOptions> = {}) {
  const ctx = await openContext(await newDatabases(), undefined, options)
  const { primary } = ctx.databases
  await primary.transaction((tx) => appendEvents(tx, { type: 't', subject: 'a' }))
  const [row] = await primary.sql<{ shard: number }[]>`select shard from holdfast.outbox`
  const cursor = await HandCursor.create(primary.sql, 'orders', row!.shard)
  return { ctx, primary, sql: primary.sql, cursor }
}

describe('watchOutbox', () => {
  it('sets a gauge of each kind for each cursor, and leaves none of a sink that was forgotten', async () => {
    const { ctx, primary, sql, cursor } = await open()
    const { shard } = cursor
    await cursor.park('b', { dead: true })
    await cursor.park('b')
    await cursor.park('b')
    await sql`
      insert into holdfast.outbox_circuits (sink, shard, state, worker) values ('orders', ${shard}, 'open', 'w')`
    await watchOutbox(ctx)
    const lines = async () => (await ctx.telemetry.registry.metrics()).split('\n')
    const labels = `sink="orders",shard="${shard}"`
    expect(await lines()).toEqual(
      expect.arrayContaining([
        `holdfast_outbox_backlog{${labels}} 1`,
        expect.stringMatching(
          `^holdfast_outbox_oldest_unpublished_age_seconds\\{${labels}\\} (0\\.\\d+|[1-9][\\d.]*)$`,
        ),
        `holdfast_outbox_parked{${labels}} 2`,
        `holdfast_outbox_dead{${labels}} 1`,
        `holdfast_outbox_circuit{${labels},state="closed"} 0`,
        `holdfast_outbox_circuit{${labels},state="open"} 1`,
        `holdfast_outbox_circuit{${labels},state="blocked"} 0`,
      ]),
    )
    await sql`update holdfast.outbox_circuits set state = 'closed'`
    await watchOutbox(ctx)
    expect(await lines()).toContain(`holdfast_outbox_circuit{${labels},state="open"} 0`)
    await forgetSink(primary, 'orders', { who: 'jo', why: 'gone' })
    await watchOutbox(ctx)
    expect((await lines()).filter((line) => line.includes('"orders"'))).toEqual([])
  })

  it('counts what the relay says', async () => {
    const { ctx } = await open()
    ctx.telemetry.outbox.published({ sink: 'orders', shard: 2 }, 7)
    ctx.telemetry.outbox.published({ sink: 'orders', shard: 2 }, 3)
    ctx.telemetry.outbox.rejected({ sink: 'orders', shard: 2 }, 1)
    const text = await ctx.telemetry.registry.metrics()
    expect(text).toContain('holdfast_outbox_published_total{sink="orders",shard="2"} 10\n')
    expect(text).toContain('holdfast_outbox_rejected_total{sink="orders",shard="2"} 1\n')
  })

  it('raises an alert for each sink that lags or has dead events, and the same one again only later', async () => {
    const { url, alerts } = await webhook()
    const { ctx, cursor } = await open({ alerts: { webhook: url, stuckAfterMs: 1 } })
    await cursor.park('b', { dead: true })
    const { cursors } = await watchOutbox(ctx)
    expect(cursors[0]!.oldestUnpublishedSeconds).toBeGreaterThan(0.001)
    await watchOutbox(ctx)
    await expect.poll(() => alerts.map(({ kind }) => kind).toSorted()).toEqual(['outbox_dead', 'outbox_lag'])
    const message = (kind: string) => alerts.find((alert) => alert.kind === kind)!.message
    expect(message('outbox_lag')).toMatch(
      /^1 events wait for orders on shard \d, the oldest for \d+ seconds\. /,
    )
    expect(message('outbox_dead')).toContain('holdfast outbox dead --sink orders')
    const text = await ctx.telemetry.registry.metrics()
    expect(text).toContain('holdfast_alerts_total{kind="outbox_lag"} 1\n')
    expect(text).toContain('holdfast_alerts_total{kind="outbox_dead"} 1\n')
  })

  it('raises none within the service level', async () => {
    const { ctx, cursor } = await open()
    await cursor.park('b')
    const { cursors } = await watchOutbox(ctx)
    expect(cursors).toMatchObject([{ backlog: 1, parked: 1 }])
    expect(await ctx.telemetry.registry.metrics()).not.toContain('holdfast_alerts_total{')
  })
})
