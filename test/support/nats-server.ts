import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { BrokerProcess, findProgram, leftOut } from './broker-process.ts'
import { freePort } from './free-port.ts'

export type NatsServer = {
  /** host:port; the same after a new start */
  address: string
  /** the streams are kept; resolves when it answers */
  start(): Promise<void>
  stop(): Promise<void>
  kill(): Promise<void>
  /** ends it and removes its folder */
  remove(): Promise<void>
}

/** Undefined, and told loudly, where there is no nats-server. */
export function natsProgram(): string | undefined {
  return findProgram('nats-server') ?? leftOut('nats-server')
}

/**
 * Starts a private nats-server with JetStream on a free port of the loopback interface, everything of it in a temporary
 * folder. Undefined where there is no nats-server.
 */
export async function startNats(
  settings: { maxPayload?: number; user?: string; pass?: string; tls?: { cert: string; key: string } } = {},
): Promise<NatsServer | undefined> {
  const program = natsProgram()
  if (program === undefined) return undefined
  const dir = await mkdtemp(join(tmpdir(), 'holdfast-nats-'))
  const config = join(dir, 'nats.conf')
  const { maxPayload = 1_048_576, user, pass, tls } = settings
  const login = user === undefined ? '' : `authorization: { user: "${user}", password: "${pass}" }\n`
  const encrypted = tls === undefined ? '' : `tls: { cert_file: "${tls.cert}", key_file: "${tls.key}" }\n`
  await writeFile(config, `max_payload: ${maxPayload}\n${login}${encrypted}`)
  for (let tries = 0; tries < 10; tries++) {
    const port = await freePort()
    const server = new BrokerProcess({
      program,
      args: ['-c', config, '-a', '127.0.0.1', '-p', String(port), '-js', '-sd', dir],
      ready: /Server is ready/,
    })
    if (!(await server.start())) continue
    return {
      address: `127.0.0.1:${port}`,
      async start() {
        if (!(await server.start())) throw new Error(`nats-server did not start again: ${server.said}`)
      },
      stop: () => server.stop(),
      kill: () => server.kill(),
      async remove() {
        await server.kill()
        await rm(dir, { recursive: true, force: true })
      },
    }
  }
  throw new Error('no free port for nats-server after ten tries')
}
