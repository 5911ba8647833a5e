import { randomUUID } from 'node:crypto'
import { Cluster } from 'ioredis'
import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest'
import { SinkUnavailableError } from '../../../src/db/errors.ts'
import type { OpenSink, Page } from '../../../src/jobs/sinks/sink.ts'
import { type ClusterNode, type RedisCluster, startRedisCluster } from '../../support/redis-cluster.ts'
import { eventOf, numbersIn, pageOf, StreamSinks, signal } from '../../support/redis-stream.ts'

describe.runIf(inject('redis') !== undefined)('redisStream on a cluster', () => {
  const sinks = new StreamSinks()
  let cluster: RedisCluster
  let client: Cluster

  beforeAll(async () => {
    cluster = (await startRedisCluster())!
    client = new Cluster([...cluster.urls])
    client.on('error', () => undefined)
  })
  afterAll(async () => {
    await sinks.close()
    client.disconnect()
    await cluster.stop()
  })

  const open = (stream: string) => sinks.open({ url: cluster.urls, stream })
  const slotOf = async (stream: string) => cluster.masters[0]!.client.cluster('KEYSLOT', stream)
  const ownerOf = async (stream: string) => cluster.ownerOf(await slotOf(stream))
  const others = (node: ClusterNode) => cluster.masters.filter((one) => one !== node)
  const inOrder = (events: number) => Array.from({ length: events }, (_, i) => i + 1)
  const perPage = 50

  /** What a relay does: the same page again, under a higher xid, until the sink has taken it. */
  class PageSource {
    xid = 100n
    published = 0
    readonly #sink: OpenSink

    constructor(sink: OpenSink) {
      this.#sink = sink
    }

    get sent(): number {
      return this.published * perPage
    }

    page(): Page {
      const events = Array.from({ length: perPage }, (_, i) => eventOf(this.sent + i + 1))
      return pageOf({ xid: ++this.xid, position: BigInt(this.sent), events })
    }

    async once(): Promise<void> {
      expect(await this.#sink.publish(this.page(), signal)).toEqual({ rejected: [] })
      this.published++
    }

    async untilTaken(): Promise<void> {
      const attempt = async () => this.once().catch((error: unknown) => error)
      await expect
        .poll(async () => {
          const error = await attempt()
          if (error !== undefined && !(error instanceof SinkUnavailableError)) throw error
          return error
        })
        .toBeUndefined()
    }

    /** Publishes while `work` goes on, and at least `pages` pages after it. */
    async during(work: Promise<unknown>, pages = 3): Promise<void> {
      const done = new AbortController()
      const watched = work.finally(() => done.abort())
      while (!done.signal.aborted) await this.untilTaken()
      await watched
      for (let i = 0; i < pages; i++) await this.untilTaken()
    }
  }

  async function migrate(slot: number, from: ClusterNode, to: ClusterNode, keys?: string[]): Promise<void> {
    for (const key of keys ?? (await from.client.cluster('GETKEYSINSLOT', slot, 100))) {
      await from.client.migrate('127.0.0.1', to.port, key, 0, 10_000)
    }
  }

  async function openSlot(slot: number, from: ClusterNode, to: ClusterNode): Promise<void> {
    await to.client.cluster('SETSLOT', slot, 'IMPORTING', await from.id())
    await from.client.cluster('SETSLOT', slot, 'MIGRATING', await to.id())
  }

  async function giveSlot(slot: number, to: ClusterNode): Promise<void> {
    const id = await to.id()
    for (const node of [to, ...others(to)]) await node.client.cluster('SETSLOT', slot, 'NODE', id)
    // A claim of the node before that is still on its way would win over a claim with an epoch not higher.
    const [, epoch] = /cluster_my_epoch:(\d+)/.exec(await to.client.cluster('INFO')) ?? []
    const known = new RegExp(`^${id} (\\S+ ){5}${epoch} `, 'm')
    for (const node of others(to)) await expect.poll(() => node.client.cluster('NODES')).toMatch(known)
  }

  it('appends to streams on every node, once and in order, several shards into one stream', async () => {
    const streams = new Map<number, string>()
    while (streams.size < cluster.masters.length) {
      const stream = randomUUID()
      streams.set((await ownerOf(stream)).port, stream)
    }
    for (const stream of streams.values()) {
      const sink = await open(stream)
      for (let n = 1; n < 20; n += 2) {
        await sink.publish(
          pageOf({ shard: 0, xid: BigInt(n), position: BigInt(n - 1), events: [eventOf(n, 'a')] }),
          signal,
        )
        const again = pageOf({
          shard: 1,
          xid: BigInt(n + 1),
          position: BigInt(n - 1),
          events: [eventOf(n + 1, 'b')],
        })
        await Promise.all([sink.publish(again, signal), sink.publish(again, signal)])
      }
      expect(await numbersIn(client, stream)).toEqual(inOrder(20))
    }
  })

  it('gets into the nodes that it was not told of as into the first one', async () => {
    const onAll = (...rule: string[]) =>
      Promise.all(cluster.masters.map(({ client: node }) => node.call('ACL', 'SETUSER', ...rule)))
    await onAll('sink', 'on', '>p%4', '~*', '+@all')
    await onAll('default', '-xadd')
    let stream = randomUUID()
    while ((await ownerOf(stream)) === cluster.masters[0]) stream = randomUUID()
    const sink = await sinks.open({ url: [cluster.urls[0]!.replace('//', '//sink:p%254@')], stream })
    await sink.publish(pageOf({ events: [eventOf(1)] }), signal)
    await onAll('default', '+@all')
    expect(await numbersIn(client, stream)).toEqual([1])
  })

  it('keeps its memory beside the stream, whatever the name of the stream', async () => {
    for (const stream of ['{1}', 'a{2}', 'a{{3}b', 'a{', '{']) {
      const sink = await open(stream)
      await sink.publish(pageOf({ events: [eventOf(1)] }), signal)
      expect(await numbersIn(client, stream)).toEqual([1])
    }
  })

  it('loses and doubles nothing at any step of the migration of its slot', async () => {
    const stream = randomUUID()
    const [slot, from] = [await slotOf(stream), await ownerOf(stream)]
    const [to] = others(from)
    const source = new PageSource(await open(stream))
    await source.once()

    await openSlot(slot, from, to!)
    await source.once()
    await migrate(slot, from, to!, [stream])
    // Half is here and half is there: TRYAGAIN, for longer than it is waited for.
    await expect(source.once()).rejects.toThrow(SinkUnavailableError)
    await migrate(slot, from, to!)
    await source.once()
    await giveSlot(slot, to!)
    await source.once()
    expect(await to!.client.exists(stream)).toBe(1)
    expect(await numbersIn(client, stream)).toEqual(inOrder(source.sent))
  })

  it('loses and doubles nothing while its slot moves to and fro under it', async () => {
    const stream = randomUUID()
    const slot = await slotOf(stream)
    const source = new PageSource(await open(stream))
    await source.once()
    const moves = async () => {
      for (let i = 0; i < 6; i++) {
        const from = await cluster.ownerOf(slot)
        const [to] = others(from)
        await openSlot(slot, from, to!)
        await migrate(slot, from, to!)
        await giveSlot(slot, to!)
      }
    }
    await source.during(moves())
    expect(await numbersIn(client, stream)).toEqual(inOrder(source.sent))
  })

  it('is unavailable when the node that it is told to ask is gone', async () => {
    const stream = randomUUID()
    const [slot, from] = [await slotOf(stream), await ownerOf(stream)]
    const [to] = others(from)
    const source = new PageSource(await open(stream))
    await openSlot(slot, from, to!)
    await to!.kill()
    await expect(source.once()).rejects.toThrow(SinkUnavailableError)
    await to!.restart()
    await cluster.settled()
    for (const node of [from, to!]) await node.client.cluster('SETSLOT', slot, 'STABLE')
    await source.untilTaken()
    expect(await numbersIn(client, stream)).toEqual(inOrder(source.sent))
  })

  it('is unavailable while its node is dead, and completes the page when it is back', async () => {
    const stream = randomUUID()
    const owner = await ownerOf(stream)
    const source = new PageSource(await open(stream))
    await source.once()
    await owner.kill()
    await expect(source.once()).rejects.toThrow(SinkUnavailableError)
    await expect(source.once()).rejects.toThrow(SinkUnavailableError)
    await owner.restart()
    await cluster.settled()
    await source.untilTaken()
    await source.untilTaken()
    expect(await numbersIn(client, stream)).toEqual(inOrder(source.sent))
  })

  it('loses and doubles nothing when its node is killed and comes back under it', async () => {
    const stream = randomUUID()
    const owner = await ownerOf(stream)
    const source = new PageSource(await open(stream))
    const accident = async () => {
      await expect.poll(() => source.published).toBeGreaterThan(5)
      await owner.kill()
      await owner.restart()
      await cluster.settled()
    }
    await source.during(accident())
    expect(await numbersIn(client, stream)).toEqual(inOrder(source.sent))
  })

  it('is unavailable while no node can be reached, and connects again', async () => {
    const stream = randomUUID()
    const source = new PageSource(await open(stream))
    await source.once()
    await Promise.all(cluster.masters.map((node) => node.kill()))
    await expect(source.once()).rejects.toThrow(SinkUnavailableError)
    await expect(source.once()).rejects.toThrow(SinkUnavailableError)
    await Promise.all(cluster.masters.map((node) => node.restart()))
    await cluster.settled()
    await source.untilTaken()
    expect(await numbersIn(client, stream)).toEqual(inOrder(source.sent))
  })

  it('follows an orderly failover without loss', async () => {
    const stream = randomUUID()
    const replica = await cluster.addReplica(await ownerOf(stream))
    const source = new PageSource(await open(stream))
    await source.once()
    const failover = async () => {
      await replica.client.cluster('FAILOVER')
      await expect.poll(() => replica.client.info('replication')).toContain('role:master')
      await cluster.settled()
    }
    await source.during(failover())
    expect((await cluster.ownerOf(await slotOf(stream))).port).toBe(replica.port)
    expect(await numbersIn(client, stream)).toEqual(inOrder(source.sent))
  })
})
