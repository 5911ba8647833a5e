import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { mkdir, mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { Redis } from 'ioredis'
import { vi } from 'vitest'
import type { Certificate } from './certificate.ts'
import { freePort } from './free-port.ts'

export type ClusterNode = {
  readonly url: string
  readonly port: number
  /** for commands to this very node */
  readonly client: Redis
  id(): Promise<string>
  /** kill -9 */
  kill(): Promise<void>
  restart(): Promise<void>
}

export type RedisCluster = {
  readonly masters: readonly ClusterNode[]
  readonly urls: readonly string[]
  ownerOf(slot: number): Promise<ClusterNode>
  /** a further node that copies a master and may take over from it */
  addReplica(of: ClusterNode): Promise<ClusterNode>
  /** until every node says that the cluster is well */
  settled(): Promise<void>
  stop(): Promise<void>
}

const slotCount = 16_384
const waiting = { timeout: 90_000, interval: 50 }

/**
 * A private Redis Cluster of three masters from the redis-server on the PATH, on free ports of the loopback interface. What
 * a node acknowledged is in its file, so a killed one comes back with it. With a certificate, which is for localhost, the nodes
 * answer to nothing but TLS and give that for their name. Undefined where there is no redis-server.
 */
export async function startRedisCluster(tls?: Certificate): Promise<RedisCluster | undefined> {
  const dir = await mkdtemp(join(tmpdir(), 'holdfast-redis-cluster-'))
  const nodes: StartedNode[] = []
  const stop = async () => {
    await Promise.all(nodes.map((node) => node.end()))
    await rm(dir, { recursive: true, force: true })
  }
  const add = async () => {
    const node = await startNode(dir, tls)
    if (node) nodes.push(node)
    return node
  }
  try {
    const [first, ...others] = [await add(), await add(), await add()]
    if (!first) {
      await stop()
      return undefined
    }
    const masters = [first, ...others.filter((node) => node !== undefined)]
    for (const [i, node] of masters.entries()) {
      const range = [0, 1].map((k) => Math.floor(((i + k) * slotCount) / masters.length))
      await node.client.cluster('ADDSLOTSRANGE', range[0] ?? 0, (range[1] ?? 0) - 1)
      await node.client.cluster('SET-CONFIG-EPOCH', i + 1)
    }
    for (const node of masters.slice(1)) await meet(node, first)
    const settled = async () => {
      for (const node of nodes)
        if (node.running()) await vi.waitUntil(() => isWell(node, nodes.length), waiting)
    }
    await settled()
    return {
      masters,
      urls: masters.map(({ url }) => url),
      settled,
      stop,
      async ownerOf(slot) {
        for (const [from, to, [, port]] of await slotsOf(nodes)) {
          const owner = nodes.find((node) => node.port === port)
          if (owner && from <= slot && slot <= to) return owner
        }
        throw new Error(`slot ${slot} has no owner`)
      },
      async addReplica(of) {
        const node = await add()
        if (!node) throw new Error('redis-server is gone from the PATH')
        await meet(node, first)
        const id = await of.id()
        await vi.waitUntil(async () => String(await node.client.cluster('NODES')).includes(id), waiting)
        await node.client.cluster('REPLICATE', id)
        await vi.waitUntil(
          async () => (await node.client.info('replication')).includes('link_status:up'),
          waiting,
        )
        await settled()
        return node
      },
    }
  } catch (error) {
    await stop()
    throw error
  }
}

async function meet(node: StartedNode, other: StartedNode): Promise<void> {
  await node.client.call('CLUSTER', 'MEET', '127.0.0.1', other.port, other.busPort)
}

type SlotRange = [from: number, to: number, master: [host: string, port: number, id: string]]

async function slotsOf(nodes: readonly StartedNode[]): Promise<SlotRange[]> {
  const asked = nodes.find((node) => node.running())
  return (await asked?.client.cluster('SLOTS')) as unknown as SlotRange[]
}

async function isWell(node: StartedNode, nodes: number): Promise<boolean> {
  const info = await node.client.cluster('INFO')
  return info.includes('cluster_state:ok') && info.includes(`cluster_known_nodes:${nodes}\r`)
}

type StartedNode = ClusterNode & { readonly busPort: number; running(): boolean; end(): Promise<void> }

async function startNode(dir: string, tls: Certificate | undefined): Promise<StartedNode | undefined> {
  for (let tries = 0; tries < 10; tries++) {
    const [port, busPort] = await freePorts()
    const home = join(dir, String(port))
    await mkdir(home)
    const place = { port, busPort, home, tls }
    const launched = await launch(place)
    if (launched === 'missing') return undefined
    if (launched !== 'port-taken') return nodeOf(launched, place)
  }
  throw new Error('no free ports for a node of the cluster after ten tries')
}

/** `home`: its folder. */
type Place = { port: number; busPort: number; home: string; tls: Certificate | undefined }

function nodeOf(started: ChildProcess, place: Place): StartedNode {
  const { port, busPort, tls } = place
  let child = started
  // Waits for its server, and reconnects to it after a restart.
  const encrypted = tls === undefined ? {} : { tls: { ca: readFileSync(tls.cert), servername: 'localhost' } }
  const client = new Redis({ port, host: '127.0.0.1', maxRetriesPerRequest: null, ...encrypted })
  client.on('error', () => undefined)
  const running = () => child.exitCode === null && child.signalCode === null
  const kill = async () => {
    if (!running()) return
    const exited = once(child, 'exit')
    child.kill('SIGKILL')
    await exited
  }
  return {
    url: tls === undefined ? `redis://127.0.0.1:${port}` : `rediss://localhost:${port}`,
    port,
    busPort,
    client,
    id: async () => client.cluster('MYID'),
    running,
    kill,
    async restart() {
      const launched = await launch(place)
      if (typeof launched === 'string')
        throw new Error(`the node on port ${port} did not come back: ${launched}`)
      child = launched
    },
    async end() {
      client.disconnect()
      await kill()
    },
  }
}

async function launch({ port, busPort, home, tls }: Place): Promise<ChildProcess | 'missing' | 'port-taken'> {
  const settings = {
    ...(tls === undefined ? { port } : encrypted(port, tls)),
    bind: '127.0.0.1',
    dir: home,
    save: '',
    appendonly: 'yes',
    // Otherwise an acknowledged write may still be on its way to the file when the node is killed.
    appendfsync: 'always',
    'maxmemory-policy': 'noeviction',
    'cluster-enabled': 'yes',
    'cluster-port': busPort,
    'cluster-node-timeout': 3_000,
    'cluster-replica-validity-factor': 0,
  }
  const args = Object.entries(settings).flatMap(([name, value]) => [`--${name}`, String(value)])
  const child = spawn('redis-server', args, { stdio: ['ignore', 'pipe', 'inherit'] })
  return new Promise((resolve, reject) => {
    child.once('error', (error) =>
      'code' in error && error.code === 'ENOENT' ? resolve('missing') : reject(error),
    )
    child.once('exit', () => resolve('port-taken'))
    createInterface({ input: child.stdout }).on('line', (line) => {
      if (line.includes('Ready to accept connections')) resolve(child)
    })
  })
}

function encrypted(port: number, { cert, key }: Certificate) {
  return {
    port: 0,
    'tls-port': port,
    'tls-cert-file': cert,
    'tls-key-file': key,
    'tls-ca-cert-file': cert,
    'tls-auth-clients': 'no',
    'tls-cluster': 'yes',
    'tls-replication': 'yes',
    'cluster-announce-hostname': 'localhost',
    'cluster-preferred-endpoint-type': 'hostname',
  }
}

/** Two ports that were free a moment ago; the bus of the cluster need not be at port + 10000. */
async function freePorts(): Promise<[number, number]> {
  const port = await freePort()
  let busPort = await freePort()
  while (busPort === port) busPort = await freePort()
  return [port, busPort]
}
