import { spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { createDatabase } from '../src/db/create-database.ts'
import { startEmbedded } from '../src/db/embedded/server.ts'
import { type Bench, type BenchServers, compare, type Measurement } from './measure.ts'
import { OutboxToRedis } from './outbox-to-redis.ts'
import { PeerProcess } from './peer-process.ts'

const peers = ['pg-transactional-outbox', 'graphile-worker']

const events = 5_000

/** The benches run in the project's folder. */
const folder = resolve('bench/peers')

/**
 * The same number of committed events into a Redis stream, by Holdfast and by others, one process each, each as its own
 * documentation says that it is fast. One of them reads the log, so the server they share writes `wal_level = logical`.
 */
export const outboxPeers: Bench = async (servers, quick) => {
  if (!installed()) return []
  const dir = await mkdtemp(join(tmpdir(), 'holdfast-bench-peers-'))
  const postgres = await startEmbedded({ dir, settings: { wal_level: 'logical' } })
  const same = { ...servers, postgres: postgres.url }
  const outbox = await OutboxToRedis.open(same, 'bench_peers')
  try {
    const rows: Measurement[] = []
    for (const name of peers) rows.push(await against(name, same, outbox, quick))
    return rows
  } finally {
    await outbox.close()
    await postgres.release()
    await rm(dir, { recursive: true, force: true })
  }
}

async function against(
  name: string,
  servers: BenchServers,
  outbox: OutboxToRedis,
  quick: boolean,
): Promise<Measurement> {
  const database = `bench_${name.replaceAll('-', '_')}`
  const url = await createDatabase(servers.postgres, database)
  const peer = await PeerProcess.start(join(folder, `${name}.mjs`), [url, servers.redis, database])
  try {
    return await compare(
      { name: `against ${name}`, unit: 'events/s', bar: 0, rounds: quick ? 3 : 5 },
      async () => {
        await outbox.append(events)
        return outbox.drain(events)
      },
      () => peer.rate(events),
    )
  } finally {
    peer.stop()
  }
}

/** They are no dependencies of the project: the bench installs them in their folder when it first needs them. */
function installed(): boolean {
  // npm writes this file last.
  if (existsSync(join(folder, 'node_modules/.package-lock.json'))) return true
  process.stderr.write('  installing the peers in bench/peers …\n')
  const { status, error } = spawnSync('npm', ['ci'], { cwd: folder, stdio: ['ignore', 2, 2] })
  if (status === 0) return true
  const why = error?.message ?? `npm ci in bench/peers ended with code ${String(status)}`
  process.stderr.write(`  left out ${peers.join(' and ')}: ${why}\n`)
  return false
}
