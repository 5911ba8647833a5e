import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { pathToFileURL } from 'node:url'
import { Cluster } from 'ioredis'
import { pino } from 'pino'
import { describe, expect, inject, it, onTestFinished } from 'vitest'
import { QueueConnection } from '../../src/workers/queue-connection.ts'
import { migrateQueues, Queues } from '../../src/workers/queues.ts'
import { newDatabase } from '../support/database.ts'
import { startRedisCluster } from '../support/redis-cluster.ts'
import { startRedis } from '../support/redis-server.ts'

const redis = inject('redis')
const library = pathToFileURL(join(inject('compiled'), 'src/index.js')).href

async function openQueues(url: string | undefined): Promise<Queues> {
  const postgres = await newDatabase()
  if (url === undefined) await migrateQueues(postgres)
  const installation = Math.random().toString(16).slice(2)
  const log = pino({ level: 'silent' })
  const queues = new Queues({ redis: url, postgres, installation, lockMs: 30_000, log })
  onTestFinished(() => queues.close())
  return queues
}

describe.each([
  ['PostgreSQL', undefined] as const,
  ...(redis === undefined ? [] : [['Redis', redis] as const]),
])('whoever leaves queues on %s', (_name, url) => {
  it('waits for what was being fetched at that moment, and stops it', async () => {
    let late = 0
    for (let round = 0; round < 3; round++) {
      const queues = await openQueues(url)
      const jobs = Array.from({ length: 40 }, (_, i) => ({ name: 'job', id: `job-${i}`, data: {} }))
      await queues.addAll('work', jobs)
      let begun = 0
      let running = 0
      let drained: Promise<void> | undefined
      await queues.work('work', 2, async (_job, signal) => {
        running++
        begun++
        // Whatever begins from here on lasts until it is stopped.
        if (drained !== undefined) {
          late++
          if (!signal.aborted) await once(signal, 'abort')
          // Longer than the worker waits for its queue.
          await sleep(2_500)
        }
        running--
      })
      await expect.poll(() => begun, { interval: 1 }).toBeGreaterThan(round)
      drained = queues.drain()
      await drained
      expect(running).toBe(0)
    }
    expect(late).toBeGreaterThan(0)
  })

  it('finds nothing to work with afterwards', async () => {
    const queues = await openQueues(url)
    await queues.add('work', { name: 'job', id: 'one', data: {} })
    await queues.close()
    await expect(queues.add('other', { name: 'job', id: 'two', data: {} })).rejects.toThrow('closed')
    await expect(queues.work('work', 1, async () => undefined)).rejects.toThrow('closed')
  })
})

describe.skipIf(redis === undefined)('a process whose Redis is away', () => {
  it('ends by itself once it was closed', async () => {
    const server = await startRedis()
    if (!server) throw new Error('no redis-server')
    const dir = await mkdtemp(join(inject('folder'), 'leaving-'))
    const config = { databases: { primary: await newDatabase() }, redis: server.url, migrate: true }
    await writeFile(
      join(dir, 'process.mjs'),
      `import { once } from 'node:events'
       import { createHoldfast } from '${library}'
       const hf = await createHoldfast(${JSON.stringify(config)})
       await hf.start()
       console.log('started')
       await once(process.stdin, 'data')
       process.stdin.destroy()
       await hf.close()
       console.log('closed')`,
    )
    const child = spawn(process.execPath, [join(dir, 'process.mjs')], {
      env: { ...process.env, LOG_LEVEL: 'silent' },
      stdio: ['pipe', 'pipe', 'inherit'],
    })
    onTestFinished(() => {
      child.kill('SIGKILL')
    })
    let said = ''
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      said += text
    })
    await expect.poll(() => said).toContain('started')
    await server.stop()
    child.stdin.write('go\n')
    const [code] = (await once(child, 'close')) as [number]
    expect({ code, said }).toEqual({ code: 0, said: 'started\nclosed\n' })
  })

  it('does not wait for its start for ever when it is closed meanwhile', async () => {
    const queues = await openQueues('redis://127.0.0.1:1')
    const working = queues.work('work', 1, async () => undefined)
    working.catch(() => undefined)
    await queues.close()
    await expect(working).rejects.toThrow('aborted')
  })
})

describe.skipIf(redis === undefined)('a connection to a cluster', () => {
  it('survives a node that is gone when it is asked, in every copy', async () => {
    const cluster = await startRedisCluster()
    if (!cluster) throw new Error('no redis-server')
    onTestFinished(() => cluster.stop())
    const { options, close } = new QueueConnection(cluster.urls).forWorker()
    onTestFinished(close)
    if (!(options instanceof Cluster)) throw new Error('no cluster')
    const copy = options.duplicate()
    onTestFinished(() => copy.disconnect())
    for (const client of [options, copy]) {
      await client.set('key', 1)
      const [node] = client.nodes('master')
      node?.disconnect()
      // ioredis leaves this promise alone.
      expect(await node?.asking()).toBe('OK')
    }
  })
})
