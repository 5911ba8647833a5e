import { execFile } from 'node:child_process'
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { BrokerProcess, findProgram, leftOut } from './broker-process.ts'
import { freePort } from './free-port.ts'

export type RabbitServer = {
  /** amqp://…; the same after a new start */
  url: string
  /** durable queues are kept; resolves when it answers */
  start(): Promise<void>
  stop(): Promise<void>
  kill(): Promise<void>
  /** runs rabbitmqctl on this node */
  control(...args: string[]): Promise<void>
  /** ends it and the port mapper and removes its folder */
  remove(): Promise<void>
}

/** Where the scripts are that take any user; Debian's own in /usr/sbin take only root and rabbitmq, and change to the latter. */
const scripts = '/usr/lib/rabbitmq/bin'

/** Undefined, and told loudly, where there is no rabbitmq-server. */
export function rabbitmqProgram(): string | undefined {
  return findProgram('rabbitmq-server', scripts) ?? leftOut('rabbitmq-server')
}

/**
 * Starts a private rabbitmq-server without plugins on free ports of the loopback interface, with an Erlang cookie, a
 * port mapper (epmd) and a data folder of its own, so that no other node of the machine is touched. Undefined where
 * there is no rabbitmq-server.
 */
export async function startRabbitmq(
  settings: { maxMessageBytes?: number } = {},
): Promise<RabbitServer | undefined> {
  const program = rabbitmqProgram()
  if (program === undefined) return undefined
  const mapper = findProgram('epmd')
  if (mapper === undefined) throw new Error('rabbitmq-server is there, but epmd of Erlang is not on the PATH')
  for (let tries = 0; tries < 5; tries++) {
    const dir = await mkdtemp(join(tmpdir(), 'holdfast-rabbitmq-'))
    const [port, epmdPort, distributionPort] = await Promise.all([freePort(), freePort(), freePort()])
    const env = await environment(dir, { port, epmdPort, distributionPort, ...settings })
    const epmd = new BrokerProcess({ program: mapper, args: ['-port', String(epmdPort)], env })
    const broker = new BrokerProcess({ program, env, ready: /completed with \d+ plugins/ })
    const remove = async () => {
      await broker.kill()
      await epmd.kill()
      await rm(dir, { recursive: true, force: true, maxRetries: 5 })
    }
    await epmd.start()
    if (!(await broker.start())) {
      await remove()
      if (!/eaddrinuse|already running|in use/i.test(broker.said)) {
        throw new Error(`rabbitmq-server did not start:\n${broker.said}`)
      }
      continue
    }
    return {
      url: `amqp://127.0.0.1:${port}`,
      async start() {
        if (!(await broker.start())) throw new Error(`rabbitmq-server did not start again:\n${broker.said}`)
      },
      stop: () => broker.stop(),
      kill: () => broker.kill(),
      async control(...args) {
        await promisify(execFile)(join(scripts, 'rabbitmqctl'), args, { env })
      },
      remove,
    }
  }
  throw new Error('no free ports for rabbitmq-server after five tries')
}

async function environment(
  dir: string,
  at: { port: number; epmdPort: number; distributionPort: number; maxMessageBytes?: number },
): Promise<NodeJS.ProcessEnv> {
  await mkdir(join(dir, 'home'))
  const limit = at.maxMessageBytes === undefined ? '' : `max_message_size = ${at.maxMessageBytes}\n`
  await writeFile(join(dir, 'rabbitmq.conf'), `log.file = false\nlog.console = true\n${limit}`)
  await writeFile(join(dir, 'enabled_plugins'), '[].\n')
  return {
    PATH: process.env.PATH,
    LANG: 'C.UTF-8',
    HOME: join(dir, 'home'),
    ERL_EPMD_PORT: String(at.epmdPort),
    ERL_EPMD_ADDRESS: '127.0.0.1',
    RABBITMQ_NODENAME: `holdfast-${at.port}@localhost`,
    RABBITMQ_NODE_IP_ADDRESS: '127.0.0.1',
    RABBITMQ_NODE_PORT: String(at.port),
    RABBITMQ_DIST_PORT: String(at.distributionPort),
    RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS: '-kernel inet_dist_use_interface {127,0,0,1}',
    RABBITMQ_MNESIA_BASE: join(dir, 'data'),
    RABBITMQ_LOG_BASE: join(dir, 'log'),
    RABBITMQ_PID_FILE: join(dir, 'pid'),
    RABBITMQ_CONF_ENV_FILE: join(dir, 'none'),
    RABBITMQ_CONFIG_FILE: join(dir, 'rabbitmq.conf'),
    RABBITMQ_ADVANCED_CONFIG_FILE: join(dir, 'none.config'),
    RABBITMQ_ENABLED_PLUGINS_FILE: join(dir, 'enabled_plugins'),
  }
}
