import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { Writable } from 'node:stream'
import { context, trace } from '@opentelemetry/api'
import { AsyncLocalStorageContextManager } from '@opentelemetry/context-async-hooks'
import { BasicTracerProvider, InMemorySpanExporter, SimpleSpanProcessor } from '@opentelemetry/sdk-trace-base'
import { pino } from 'pino'
import { afterAll, beforeAll, beforeEach, describe, expect, it, onTestFinished } from 'vitest'
import { beginDistributed } from '../../src/jobs/begin.ts'
import { systemClock } from '../../src/jobs/clock.ts'
import { commitDistributed, rollbackDistributed } from '../../src/jobs/coordinator.ts'
import { setAside } from '../../src/jobs/move.ts'
import { recover } from '../../src/jobs/recovery.ts'
import { runDistributed } from '../../src/jobs/run-distributed.ts'
import { newDatabases, openContext } from '../support/database.ts'

const spans = new InMemorySpanExporter()
const work = async () => null

beforeAll(() => {
  context.setGlobalContextManager(new AsyncLocalStorageContextManager().enable())
  trace.setGlobalTracerProvider(new BasicTracerProvider({ spanProcessors: [new SimpleSpanProcessor(spans)] }))
})
afterAll(() => {
  trace.disable()
  context.disable()
})
beforeEach(() => spans.reset())

describe('traces', () => {
  it('of one transaction are one, whatever process does the next thing', async () => {
    const urls = await newDatabases({ billing: 'west' })
    const first = await openContext(urls)
    const second = await openContext(urls)
    await beginDistributed(first, 'order_1', { primary: work, billing: work })
    await commitDistributed(second, 'order_1')
    const finished = spans.getFinishedSpans()
    expect(new Set(finished.map((span) => span.spanContext().traceId)).size).toBe(1)
    expect(finished.map((span) => span.name).toSorted()).toEqual([
      'holdfast.begin',
      'holdfast.commit',
      'holdfast.decide',
      'holdfast.prepare',
      'holdfast.prepare',
    ])
    const begin = finished.find((span) => span.name === 'holdfast.begin')
    const commit = finished.find((span) => span.name === 'holdfast.commit')
    expect(commit?.parentSpanContext?.spanId).toBe(begin?.spanContext().spanId)
    expect(commit?.attributes).toMatchObject({ 'holdfast.transaction.name': 'order_1' })
  })

  it('join the caller’s, and go on in recovery', async () => {
    const urls = await newDatabases()
    const first = await openContext(urls)
    const second = await openContext(urls)
    const traceparent = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'
    await beginDistributed(first, 'order_1', work, { traceparent })
    await first.databases.primary.sql`
      update holdfast.distributed_transactions set deadline = clock_timestamp() - interval '1 second'`
    await recover(second)
    const names = spans
      .getFinishedSpans()
      .filter((span) => span.spanContext().traceId === '0af7651916cd43dd8448eb211c80319c')
      .map((span) => span.name)
    expect(names.toSorted()).toEqual(['holdfast.begin', 'holdfast.prepare', 'holdfast.recover'])
  })

  it('show where it failed', async () => {
    const ctx = await openContext(await newDatabases())
    const failing = runDistributed(ctx, 'order_1', {
      stage: work,
      effects: () => Promise.reject(new Error('refused')),
    })
    await expect(failing).rejects.toThrow('refused')
    const effects = spans.getFinishedSpans().find((span) => span.name === 'holdfast.effects')
    expect(effects?.events[0]?.attributes).toMatchObject({ 'exception.message': 'refused' })
  })
})

describe('metrics', () => {
  it('count each transaction once over all processes, by outcome, with no id in a label', async () => {
    const urls = await newDatabases()
    const first = await openContext(urls)
    const second = await openContext(urls)
    await beginDistributed(first, 'order_1', work)
    await Promise.all([commitDistributed(first, 'order_1'), commitDistributed(second, 'order_1')])
    await beginDistributed(first, 'order_2', work)
    await rollbackDistributed(second, 'order_2', 'test')
    await beginDistributed(first, 'order_3', work)
    await recover(first)
    const texts = await Promise.all([first, second].map((ctx) => ctx.telemetry.registry.metrics()))
    const sum = (metric: string) =>
      texts
        .map((text) =>
          Number(
            text
              .split('\n')
              .find((line) => line.startsWith(`${metric} `))
              ?.split(' ')[1] ?? 0,
          ),
        )
        .reduce((a, b) => a + b)
    expect(sum('holdfast_distributed_transactions_started_total')).toBe(3)
    expect(sum('holdfast_distributed_transactions_finished_total{outcome="committed"}')).toBe(1)
    expect(sum('holdfast_distributed_transactions_finished_total{outcome="rolled_back"}')).toBe(1)
    expect(sum('holdfast_distributed_transactions_open{status="pending"}')).toBe(1)
    expect(sum('holdfast_distributed_transaction_duration_seconds_count{outcome="committed"}')).toBe(1)
    expect(sum('holdfast_in_doubt_oldest_age_seconds')).toBeGreaterThan(0)
    expect(texts.join()).not.toMatch(/order_\d/)
    await rollbackDistributed(first, 'order_3', 'test')
  })
})

describe('alerts', () => {
  it('go to the log at error, to the metric and to the webhook, the same one again after an hour', async () => {
    const bodies: unknown[] = []
    let answered = () => {}
    const server = createServer((request, response) => {
      let text = ''
      request.on('data', (part) => {
        text += String(part)
      })
      request.on('end', () => {
        bodies.push(JSON.parse(text))
        response.end()
        answered()
      })
    }).listen(0, '127.0.0.1')
    onTestFinished(() => void server.close())
    await new Promise((resolve) => server.once('listening', resolve))
    const lines: string[] = []
    const sink = new Writable({ write: (line, _, done) => (lines.push(String(line)), done()) })
    let now = Date.now()
    const ctx = await openContext(await newDatabases(), undefined, {
      log: pino({ level: 'error' }, sink),
      clock: { ...systemClock, now: () => now },
      alerts: { webhook: `http://127.0.0.1:${(server.address() as AddressInfo).port}/hook` },
    })
    const { attempt } = await beginDistributed(ctx, 'order_1', work)
    const arrived = new Promise<void>((resolve) => {
      answered = resolve
    })
    await setAside(ctx, attempt, 'billing is on fire')
    await arrived
    ctx.alerts.raise({ kind: 'requires_manual_intervention', subject: 'order_1', message: 'again' })
    expect(bodies).toEqual([
      {
        kind: 'requires_manual_intervention',
        subject: 'order_1',
        message: expect.stringContaining('billing is on fire'),
        at: new Date(now).toISOString(),
        installation: ctx.installation,
      },
    ])
    expect(lines).toHaveLength(1)
    expect(JSON.parse(lines[0] ?? '')).toMatchObject({ level: 50, alert: 'requires_manual_intervention' })
    now += 60 * 60 * 1000
    ctx.alerts.raise({ kind: 'requires_manual_intervention', subject: 'order_1', message: 'again' })
    expect(lines).toHaveLength(2)
    expect(await ctx.telemetry.registry.metrics()).toContain(
      'holdfast_alerts_total{kind="requires_manual_intervention"} 2',
    )
    await rollbackDistributed(ctx, 'order_1', 'test')
  })

  it('do not fail where the webhook cannot be reached', async () => {
    const lines: string[] = []
    let warned = () => {}
    const sink = new Writable({
      write: (line, _, done) => {
        lines.push(String(line))
        if (String(line).includes('webhook was not reached')) warned()
        done()
      },
    })
    const ctx = await openContext(await newDatabases(), undefined, {
      log: pino({ level: 'warn' }, sink),
      alerts: { webhook: 'http://127.0.0.1:1/' },
    })
    const seen = new Promise<void>((resolve) => {
      warned = resolve
    })
    ctx.alerts.raise({ kind: 'stuck', subject: 'order_1', message: 'stuck' })
    await seen
    expect(lines).toHaveLength(2)
  })
})
