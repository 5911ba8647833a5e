import { type ClusterOptions, Redis, type RedisOptions } from 'ioredis'
import { openCluster } from './redis-cluster.ts'
import { type EncodedArguments, type Script, ScriptCall } from './redis-script-call.ts'
import type { RedisUrls } from './redis-urls.ts'

/** A client of one server or of a cluster that fails fast: the relay's own back-off decides when to try again. */
export type RedisConnection = {
  run(script: Script, keys: readonly string[], ...args: EncodedArguments[]): Promise<unknown>
  close(): void
}

/**
 * A command is sent once. Nothing is sent again after a lost connection; it fails with it, and the relay sends the page
 * again, under a higher xid. A server that says nothing for a while counts as lost: sooner than the relay gives the page
 * up, so that no commands pile up behind one that hangs.
 */
const perServer = {
  maxRetriesPerRequest: 0,
  autoResendUnfulfilledCommands: false,
  connectTimeout: 5_000,
  socketTimeout: 15_000,
} satisfies RedisOptions

/**
 * A cluster answers MOVED, ASK and TRYAGAIN *instead of* running a command, so these are followed, TRYAGAIN (a slot on
 * its way to another node) for one to two seconds. A lost connection and CLUSTERDOWN are reported at once. When no node
 * can be asked for the slots, the client ends, and with it what is queued; the next command connects anew.
 */
const perCluster = {
  lazyConnect: true,
  clusterRetryStrategy: null,
  retryDelayOnFailover: 0,
  retryDelayOnClusterDown: 0,
  retryDelayOnTryAgain: 100,
  maxRedirections: 16,
} satisfies ClusterOptions

export function connectRedis(url: RedisUrls): RedisConnection {
  return typeof url === 'string' ? toServer(url) : toCluster(url)
}

function toServer(url: string): RedisConnection {
  const redis = new Redis(url, { ...perServer, lazyConnect: true })
  // Without a listener ioredis writes connection errors to the console; every command reports them as well.
  redis.on('error', () => undefined)
  return {
    run: async (script, keys, ...args) => runScript((call) => redis.sendCommand(call), script, keys, args),
    close: () => redis.disconnect(),
  }
}

function toCluster(urls: readonly string[]): RedisConnection {
  const cluster = openCluster(urls, perCluster, perServer)
  return {
    async run(script, keys, ...args) {
      // Queued commands fail with the connection, so what it says is reported by them.
      if (cluster.status === 'end') cluster.connect().catch(() => undefined)
      return runScript((call) => cluster.sendCommand(call), script, keys, args)
    },
    close: () => cluster.disconnect(),
  }
}

async function runScript(
  send: (call: ScriptCall) => unknown,
  script: Script,
  keys: readonly string[],
  args: EncodedArguments[],
): Promise<unknown> {
  try {
    return await send(new ScriptCall(script, 'sha1', keys, args))
  } catch (error) {
    if (!(error instanceof Error && error.message.startsWith('NOSCRIPT'))) throw error
    return send(new ScriptCall(script, 'text', keys, args))
  }
}
