import { afterAll, beforeAll, describe, expect, inject, it, onTestFinished } from 'vitest'
import { createHoldfast, defineJob } from '../../src/index.ts'
import { newDatabase, openContext } from '../support/database.ts'
import { type RedisCluster, startRedisCluster } from '../support/redis-cluster.ts'

process.env.LOG_LEVEL = 'silent'

describe.skipIf(inject('redis') === undefined)('queues on a Redis Cluster', () => {
  let cluster: RedisCluster
  beforeAll(async () => {
    const started = await startRedisCluster()
    if (!started) throw new Error('no redis-server')
    cluster = started
  })
  afterAll(() => cluster.stop())

  async function arrange() {
    const primary = await newDatabase()
    const count = defineJob({
      name: 'count',
      async stage({ tx, input }) {
        await tx`insert into counted (id) values (${(input as { id: number }).id})`
      },
    })
    const hf = await createHoldfast({
      databases: { primary },
      redis: cluster.urls,
      jobs: [count],
      migrate: true,
      // Longer than a test may take: whoever waits for the deadline fails.
      timing: { assertEveryMs: 100, lockMs: 1_000, drainMs: 600_000 },
    })
    onTestFinished(() => hf.close())
    const ctx = await openContext({ primary })
    const { sql } = ctx.databases.primary
    await sql`create table counted (id int)`
    const enqueue = async (from: number, to: number) => {
      await sql`select holdfast.enqueue('count', jsonb_build_object('id', id)) from generate_series(${from}::int, ${to}::int) id`
    }
    const completed = async () => (await sql`select from holdfast.jobs where status = 'completed'`).length
    const counted = () => sql`select count(*)::int, count(distinct id)::int as ids from counted`
    return { hf, sql, enqueue, completed, counted, installation: ctx.installation }
  }

  it('lie on different nodes, each on one', async () => {
    const { hf, enqueue, completed, installation } = await arrange()
    await hf.start()
    await enqueue(1, 3)
    await expect.poll(completed).toBe(3)
    const onNode = await Promise.all(
      cluster.masters.map(async ({ client }) => {
        const keys = await client.keys(`*${installation}*`)
        return [...new Set(keys.map((key) => /^\{holdfast-[^-]+-(\w+)\}:/.exec(key)?.[1]))]
      }),
    )
    expect(onNode.flat()).toHaveLength(4)
    expect(new Set(onNode.flat())).toEqual(new Set(['batch', 'cleanup', 'jobs', 'outbox']))
    expect(onNode.filter((queues) => queues.length > 0).length).toBeGreaterThan(1)
  })

  it('go on when the node of a queue dies and its replica takes over, each job once', async () => {
    const { hf, enqueue, completed, counted, installation } = await arrange()
    const slot = await cluster.masters[0]?.client.cluster('KEYSLOT', `{holdfast-${installation}-jobs}:jobs`)
    const owner = await cluster.ownerOf(slot ?? 0)
    await cluster.addReplica(owner)
    await hf.start()
    await enqueue(1, 40)
    await expect.poll(completed).toBeGreaterThan(0)
    await owner.kill()
    await enqueue(41, 80)
    await expect.poll(completed).toBe(80)
    expect(await counted()).toEqual([{ count: 80, ids: 80 }])
    await owner.restart()
    await cluster.settled()
  })

  it('are left at once by a process that stops while the cluster is away', async () => {
    const { hf, sql } = await arrange()
    await hf.start()
    for (const node of cluster.masters) await node.kill()
    await hf.close()
    expect(await sql`select from holdfast.workers where kind = 'worker'`).toEqual([])
    for (const node of cluster.masters) await node.restart()
  })
})
