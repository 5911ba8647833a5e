import { mkdtemp, readFile, writeFile } from 'node:fs/promises'
import { createServer } from 'node:https'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { jetstreamManager } from '@nats-io/jetstream'
import { connect as connectNats } from '@nats-io/transport-node'
import { connect as connectAmqp } from 'amqplib'
import { Queue } from 'bullmq'
import { Redis } from 'ioredis'
import { beforeAll, describe, expect, inject, it, onTestFinished } from 'vitest'
import type { Sql } from '../../src/db/databases.ts'
import { type Certificate, createCertificate, openssl, overTls } from '../support/certificate.ts'
import { newDatabases, openContext } from '../support/database.ts'
import { natsProgram, startNats } from '../support/nats-server.ts'
import { HoldfastProcess } from '../support/process.ts'
import { rabbitmqProgram, startRabbitmq } from '../support/rabbitmq-server.ts'
import { startRedisCluster } from '../support/redis-cluster.ts'
import { startRedis } from '../support/redis-server.ts'

const compiled = pathToFileURL(join(inject('compiled'), 'src/')).href
const all = openssl && natsProgram() && rabbitmqProgram() && inject('redis')

/** A worker as its own process, since a process gets its further CAs when it starts (NODE_EXTRA_CA_CERTS). */
async function startWorker(sinks: string, env: Record<string, string>): Promise<HoldfastProcess> {
  const cwd = await mkdtemp(join(inject('folder'), 'tls-'))
  await writeFile(
    join(cwd, 'holdfast.config.mjs'),
    `import { defineJob } from '${compiled}index.js'
     import { bullmq } from '${compiled}jobs/sinks/bullmq.js'
     import { nats } from '${compiled}jobs/sinks/nats.js'
     import { rabbitmq } from '${compiled}jobs/sinks/rabbitmq.js'
     import { redisStream } from '${compiled}jobs/sinks/redis-stream.js'
     import { webhook } from '${compiled}jobs/sinks/webhook.js'
     const sinks = ${sinks}
     export default {
       jobs: [defineJob({ name: 'greet', stage: () => 'hello' })],
       sinks,
       routes: [{ type: '**', to: Object.keys(sinks) }],
       timing: { assertEveryMs: 100, pollMs: 100 },
     }`,
  )
  return new HoldfastProcess(['worker', '--migrate'], env, cwd)
}

/** An event is published, and a job has run. */
async function publishAndRun(sql: Sql): Promise<void> {
  await sql`select holdfast.publish('greeted', 'x', '{}')`
  const [job] = await sql<{ id: string }[]>`select holdfast.enqueue('greet', 'null') as id`
  await expect
    .poll(async () => (await sql`select status from holdfast.jobs where id = ${job?.id ?? ''}`)[0]?.status)
    .toBe('completed')
}

describe.runIf(all)('over TLS', () => {
  let certificate: Certificate
  beforeAll(async () => {
    certificate = await createCertificate()
  })

  it('jobs run and events go to every kind of broker', async () => {
    const urls = await newDatabases()
    const { sql } = (await openContext(urls)).databases.primary
    const [redis, rabbit, nats] = await Promise.all([
      startRedis(),
      startRabbitmq(),
      startNats({ tls: certificate }),
    ])
    if (!redis || !rabbit || !nats) throw new Error('a broker is missing')
    onTestFinished(async () => {
      await Promise.all([redis.stop(), rabbit.remove(), nats.remove()])
    })
    const port = (url: string) => Number(new URL(url).port)
    const rediss = `rediss://localhost:${await overTls(certificate, port(redis.url))}`
    const amqps = `amqps://localhost:${await overTls(certificate, port(rabbit.url))}`
    const received: string[] = []
    const hook = createServer(
      { cert: await readFile(certificate.cert), key: await readFile(certificate.key) },
      (request, response) => {
        received.push(String(request.headers['ce-type'] ?? request.headers['webhook-id']))
        request.resume()
        response.end()
      },
    )
    await new Promise<void>((resolve) => hook.listen(0, '127.0.0.1', resolve))
    onTestFinished(() => {
      hook.closeAllConnections()
      hook.close()
    })

    const ca = await readFile(certificate.cert, 'utf8')
    const client = await connectNats({ servers: nats.address.replace('127.0.0.1', 'localhost'), tls: { ca } })
    onTestFinished(() => client.close())
    const manager = await jetstreamManager(client)
    await manager.streams.add({ name: 'S', subjects: ['S.>'] })
    const amqp = await connectAmqp(rabbit.url)
    amqp.on('error', () => undefined)
    const channel = await amqp.createChannel()
    await channel.assertQueue('q')

    const worker = await startWorker(
      `{
        stream: redisStream({ url: '${rediss}', stream: 'events' }),
        queue: bullmq({ url: '${rediss}', queue: 'mail' }),
        rabbit: rabbitmq({ url: '${amqps}', exchange: '', routingKey: 'q' }),
        nats: nats({ servers: 'localhost:${nats.address.split(':')[1] ?? ''}', stream: 'S', subject: 'S.x', connection: { tls: {} } }),
        hook: webhook({ url: 'https://localhost:${(hook.address() as { port: number }).port}', secret: 'whsec_${Buffer.alloc(32).toString('base64')}' }),
      }`,
      { DATABASE_URL: urls.primary ?? '', REDIS_URL: rediss, NODE_EXTRA_CA_CERTS: certificate.cert },
    )
    await worker.says('worker started')
    await publishAndRun(sql)
    const inRedis = new Redis(redis.url)
    onTestFinished(() => inRedis.disconnect())
    const mail = new Queue('mail', { connection: inRedis })
    onTestFinished(() => mail.close())
    await expect.poll(() => inRedis.xlen('events')).toBe(1)
    await expect.poll(() => mail.getWaitingCount()).toBe(1)
    await expect.poll(async () => (await channel.checkQueue('q')).messageCount).toBe(1)
    await expect.poll(async () => (await manager.streams.info('S')).state.messages).toBe(1)
    await expect.poll(() => received.length).toBe(1)
    worker.child.kill('SIGTERM')
    expect(await worker.ended).toMatchObject({ code: 0 })
  })

  it('jobs run on queues on a Redis Cluster, and events go to it', async () => {
    const urls = await newDatabases()
    const { sql } = (await openContext(urls)).databases.primary
    const cluster = await startRedisCluster(certificate)
    if (!cluster) throw new Error('no redis-server')
    onTestFinished(() => cluster.stop())
    const worker = await startWorker(
      `{ stream: redisStream({ url: ${JSON.stringify(cluster.urls)}, stream: 'events' }) }`,
      {
        DATABASE_URL: urls.primary ?? '',
        REDIS_URL: cluster.urls.join(','),
        NODE_EXTRA_CA_CERTS: certificate.cert,
      },
    )
    await worker.says('worker started')
    await publishAndRun(sql)
    const keys = () => Promise.all(cluster.masters.map(({ client }) => client.keys('events')))
    await expect.poll(async () => (await keys()).flat()).toEqual(['events'])
    worker.child.kill('SIGTERM')
    expect(await worker.ended).toMatchObject({ code: 0 })
  })

  it('nothing is said to a Redis whose certificate nobody vouches for', async () => {
    const urls = await newDatabases()
    const redis = await startRedis()
    if (!redis) throw new Error('no redis-server')
    onTestFinished(() => redis.stop())
    const rediss = `rediss://:secret@localhost:${await overTls(certificate, Number(new URL(redis.url).port))}`
    const worker = await startWorker('{}', { DATABASE_URL: urls.primary ?? '', REDIS_URL: rediss })
    await worker.says('self-signed certificate')
    worker.child.kill('SIGTERM')
    const { stderr } = await worker.ended
    expect(stderr).not.toContain('worker started')
    expect(stderr).not.toContain('secret')
    const client = new Redis(redis.url)
    onTestFinished(() => client.disconnect())
    expect(await client.info('commandstats')).not.toMatch(/cmdstat_(auth|hello|eval)/)
  })
})
