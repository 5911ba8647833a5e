import { Cluster, type ClusterOptions, type Redis, type RedisOptions } from 'ioredis'
import { accessOf } from './redis-urls.ts'

/**
 * A client of a Redis Cluster, and every copy that is made of it: found through some nodes, which say in their URLs how to
 * get in.
 */
export function openCluster(
  urls: readonly string[],
  perCluster: ClusterOptions,
  perServer: RedisOptions,
): Cluster {
  return forgiving(
    new Cluster([...urls], {
      slotsRefreshTimeout: 5_000,
      // Names are resolved by the connection itself, which checks a certificate against the name.
      dnsLookup: (name, done) => done(null, name),
      ...perCluster,
      redisOptions: { ...perServer, ...accessOf(urls) },
    }),
  )
}

function forgiving(cluster: Cluster): Cluster {
  // Without a listener ioredis writes connection errors to the console; whoever uses the client is told as well.
  cluster.on('error', () => undefined)
  cluster.on('+node', forgiveAsking)
  const duplicate = cluster.duplicate.bind(cluster)
  cluster.duplicate = (...args) => forgiving(duplicate(...args))
  return cluster
}

/**
 * Before a command that was answered ASK, ioredis sends ASKING and leaves its promise alone: when the connection to that
 * node fails, the rejection that nobody handles would end the process. The command behind it fails the same way.
 */
function forgiveAsking(node: Redis): void {
  const asking = node.asking.bind(node)
  node.asking = async () => asking().catch(() => 'OK' as const)
}
