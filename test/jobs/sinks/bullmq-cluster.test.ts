import { Queue } from 'bullmq'
import { Cluster } from 'ioredis'
import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest'
import { InvalidConfigError, SinkUnavailableError } from '../../../src/db/errors.ts'
import { bullmq } from '../../../src/jobs/sinks/bullmq.ts'
import type { OpenSink } from '../../../src/jobs/sinks/sink.ts'
import { numbered, pageOf, sinkContextOf } from '../../support/outbox-page.ts'
import { type RedisCluster, startRedisCluster } from '../../support/redis-cluster.ts'

const prefix = '{shop}'
const signal = new AbortController().signal
const event = (id: number) => numbered(id, { partitionkey: 'k', data: { n: id }, traceparent: undefined })
const events = (from: number, to: number) => Array.from({ length: to - from + 1 }, (_, i) => event(from + i))
const numbersTo = (last: number) => Array.from({ length: last }, (_, i) => i + 1)

describe.runIf(inject('redis') !== undefined)('bullmq on a cluster', () => {
  let cluster: RedisCluster
  let client: Cluster
  let queue: Queue
  let sink: OpenSink

  beforeAll(async () => {
    cluster = (await startRedisCluster())!
    client = new Cluster([...cluster.urls])
    client.on('error', () => undefined)
    queue = new Queue('mail', { connection: client, prefix })
    sink = await bullmq({ url: cluster.urls, queue: 'mail', prefix }).open(sinkContextOf())
  })
  afterAll(async () => {
    await sink.close()
    await queue.close()
    client.disconnect()
    await cluster.stop()
  })

  const waiting = async () =>
    (await queue.getJobs(['waiting'], 0, -1, true)).map((job) => (job.data as { data: { n: number } }).data.n)

  it('adds a job per event, in order, and none twice', async () => {
    const first = events(1, 50)
    for (const page of [first, first, events(51, 60)])
      expect(await sink.publish(pageOf(page), signal)).toEqual({ rejected: [] })
    expect(await waiting()).toEqual(numbersTo(60))
  })

  it('is unavailable while the node of the queue is away, and goes on when it is back', async () => {
    const slot = await cluster.masters[0]!.client.cluster('KEYSLOT', prefix)
    const owner = await cluster.ownerOf(slot)
    const next = events(61, 70)
    await owner.kill()
    await expect(sink.publish(pageOf(next), signal)).rejects.toThrow(SinkUnavailableError)
    await owner.restart()
    await cluster.settled()
    await expect
      .poll(() => sink.publish(pageOf(next), signal).catch((error: unknown) => error))
      .toEqual({ rejected: [] })
    expect(await waiting()).toEqual(numbersTo(70))
  })

  it('refuses a prefix that would spread the keys of a job', () => {
    const open = (options: { prefix?: string }) => () => bullmq({ url: cluster.urls, queue: 'q', ...options })
    expect(open({})).toThrow(InvalidConfigError)
    expect(open({ prefix: 'shop' })).toThrow('prefix needs a hash tag')
    expect(() => bullmq({ url: [], queue: 'q', prefix })).toThrow('the list of cluster nodes is empty')
  })
})
