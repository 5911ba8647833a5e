import { spawn } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { jetstreamManager } from '@nats-io/jetstream'
import { connect as connectNats } from '@nats-io/transport-node'
import { connect as connectRabbit } from 'amqplib'
import { Queue } from 'bullmq'
import { Cluster } from 'ioredis'
import { afterAll, expect, inject, it } from 'vitest'
import { appendEvents } from '../../src/db/outbox.ts'
import type { Step } from '../../src/db/steps.ts'
import { recover } from '../../src/jobs/recovery.ts'
import { newDatabase, openContext } from '../support/database.ts'
import { startNats } from '../support/nats-server.ts'
import { preparedGids } from '../support/prepared-gids.ts'
import { startRabbitmq } from '../support/rabbitmq-server.ts'
import { startRedisCluster } from '../support/redis-cluster.ts'
import { drainInto, type SinkSpec } from '../support/relay-sinks.ts'

/**
 * A relay is killed at every step of a page, for every sink; another process goes on. What the sink received, de-duplicated
 * by the means that it states, is what was committed: nothing missing, each key in its order. (`table` and a single Redis,
 * which double nothing even without de-duplication, are killed with the other scenarios.)
 */
type Received = { id: string; n: number; key: string }
type Target = { spec: SinkSpec; received: () => Promise<Received[]>; unique: boolean }

const steps: Step[] = ['epoch.started', 'page.staging', 'page.prepared', 'page.published', 'page.committed']
const keys = ['a', 'b', 'c', 'd']
const events = 100
const child = join(inject('compiled'), 'test/support/relay-child.js')
const closing: (() => Promise<unknown>)[] = []
afterAll(async () => {
  for (const close of closing.toReversed()) await close()
})

type Event = { id: string; partitionkey: string; data: { n: number } }
const toReceived = (id: string, { partitionkey, data }: Event): Received => ({
  id,
  n: data.n,
  key: partitionkey,
})

const targets: Record<SinkSpec['kind'], (() => Promise<Target>) | undefined> = {
  nats: await natsTargets(),
  rabbitmq: await rabbitTargets(),
  webhook: webhookTarget,
  bullmq: inject('redis') === undefined ? undefined : bullmqTarget,
  'redis-cluster': await clusterTargets(),
}

async function natsTargets() {
  const server = await startNats()
  if (!server) return undefined
  const client = await connectNats({ servers: server.address })
  closing.push(
    () => server.remove(),
    () => client.close(),
  )
  const manager = await jetstreamManager(client)
  return async (): Promise<Target> => {
    const stream = `S${randomUUID().replaceAll('-', '')}`
    await manager.streams.add({ name: stream, subjects: [`${stream}.>`] })
    const received = async () => {
      const { state } = await manager.streams.info(stream)
      const messages: Received[] = []
      for (let seq = 1; seq <= state.messages; seq++) {
        const message = await manager.streams.getMessage(stream, { seq })
        messages.push(toReceived(message!.header.get('Nats-Msg-Id'), message!.json<Event>()))
      }
      return messages
    }
    // JetStream keeps one of each id by itself.
    return { spec: { kind: 'nats', servers: server.address, stream }, received, unique: true }
  }
}

async function rabbitTargets() {
  const server = await startRabbitmq()
  if (!server) return undefined
  const client = await connectRabbit(server.url)
  client.on('error', () => undefined)
  closing.push(() => server.remove())
  const channel = await client.createChannel()
  return async (): Promise<Target> => {
    const queue = randomUUID()
    await channel.assertQueue(queue)
    const received = async () => {
      const messages: Received[] = []
      for (;;) {
        const message = await channel.get(queue, { noAck: true })
        if (!message) return messages
        const event = JSON.parse(message.content.toString()) as Event
        messages.push(toReceived(String(message.properties.messageId), event))
      }
    }
    return { spec: { kind: 'rabbitmq', url: server.url, queue }, received, unique: false }
  }
}

async function webhookTarget(): Promise<Target> {
  const messages: Received[] = []
  const server = createServer((request, response) => {
    const chunks: Buffer[] = []
    request.on('data', (chunk: Buffer) => chunks.push(chunk))
    request.on('end', () => {
      const event = JSON.parse(Buffer.concat(chunks).toString()) as Event
      messages.push(toReceived(String(request.headers['webhook-id']), event))
      response.end()
    })
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  closing.push(async () => {
    server.closeAllConnections()
    server.close()
  })
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/`
  const secret = `whsec_${Buffer.alloc(24, 7).toString('base64')}`
  return { spec: { kind: 'webhook', url, secret }, received: async () => messages, unique: false }
}

async function bullmqTarget(): Promise<Target> {
  const url = inject('redis') ?? ''
  const name = randomUUID()
  const queue = new Queue(name, { connection: { url } })
  closing.push(() => queue.close())
  const received = async () => {
    const jobs = await queue.getJobs(['waiting'], 0, -1, true)
    return jobs.map((job) => toReceived(String(job.id), job.data as Event))
  }
  return { spec: { kind: 'bullmq', url, queue: name }, received, unique: true }
}

async function clusterTargets() {
  const cluster = await startRedisCluster()
  if (!cluster) return undefined
  const client = new Cluster([...cluster.urls])
  closing.push(
    () => cluster.stop(),
    async () => client.disconnect(),
  )
  return async (): Promise<Target> => {
    const stream = randomUUID()
    const received = async () =>
      (await client.xrange(stream, '-', '+')).map(([, [, json = '']]) => {
        const event = JSON.parse(json) as Event
        return toReceived(event.id, event)
      })
    return { spec: { kind: 'redis-cluster', urls: [...cluster.urls], stream }, received, unique: true }
  }
}

for (const [kind, open] of Object.entries(targets)) {
  if (!open) continue
  it.each(steps)(`${kind}: killed at %s, what it received is what was committed`, async (step) => {
    const { spec, received, unique } = await open()
    const url = await newDatabase()
    const ctx = await openContext({ primary: url })
    for (let n = 0; n < events; n++) {
      const event = { type: 'test.counted', subject: keys[n % keys.length]!, data: { n } }
      await ctx.databases.primary.transaction((tx) => appendEvents(tx, event))
    }
    const args = [child, url, step, JSON.stringify(spec)]
    const { 1: signal } = await once(spawn(process.execPath, args, { stdio: 'inherit' }), 'exit')
    expect(signal).toBe('SIGKILL')
    await ctx.databases.primary.sql`
      update holdfast.workers set lease_until = clock_timestamp() - interval '1 second' where id <> ${ctx.lease.id}`
    await recover(ctx)
    expect(await drainInto(ctx, spec)).toBe('idle')

    const messages = await received()
    const seen = new Set<string>()
    const firsts = messages.filter(({ id }) => !seen.has(id) && seen.add(id))
    if (unique) expect(messages).toHaveLength(firsts.length)
    for (const [i, key] of keys.entries()) {
      const numbers = firsts.filter((one) => one.key === key).map(({ n }) => n)
      expect(numbers).toEqual(Array.from({ length: events / keys.length }, (_, k) => k * keys.length + i))
    }
    expect([...(await preparedGids(ctx))]).toEqual([])
  })
}
