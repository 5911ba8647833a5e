import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { freePort } from './free-port.ts'

export type RedisServer = { url: string; pid: number; stop(): Promise<void> }

/**
 * Starts a private redis-server from the PATH on a free port of the loopback interface, with nothing kept after it.
 * Undefined where there is no redis-server.
 */
export async function startRedis(): Promise<RedisServer | undefined> {
  const dir = await mkdtemp(join(tmpdir(), 'holdfast-redis-'))
  for (let tries = 0; tries < 10; tries++) {
    const port = await freePort()
    const outcome = await launch(port, dir)
    if (outcome === 'missing') {
      await rm(dir, { recursive: true, force: true })
      return undefined
    }
    if (outcome !== 'port-taken') return outcome
  }
  throw new Error('no free port for redis-server after ten tries')
}

async function launch(port: number, dir: string): Promise<RedisServer | 'missing' | 'port-taken'> {
  const args = [
    '--port',
    String(port),
    '--bind',
    '127.0.0.1',
    '--dir',
    dir,
    '--save',
    '',
    '--appendonly',
    'no',
  ]
  const child = spawn('redis-server', [...args, '--maxmemory-policy', 'noeviction'], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  const missing = new Promise<'missing'>((resolve, reject) => {
    child.once('error', (error) =>
      'code' in error && error.code === 'ENOENT' ? resolve('missing') : reject(error),
    )
  })
  const ready = new Promise<'ready' | 'port-taken'>((resolve) => {
    createInterface({ input: child.stdout }).on('line', (line) => {
      if (line.includes('Ready to accept connections')) resolve('ready')
    })
    child.once('exit', () => resolve('port-taken'))
  })
  const outcome = await Promise.race([missing, ready])
  if (outcome !== 'ready') return outcome
  const exited = once(child, 'exit')
  return {
    url: `redis://127.0.0.1:${port}`,
    pid: child.pid ?? 0,
    async stop() {
      child.kill('SIGKILL')
      await exited
      await rm(dir, { recursive: true, force: true })
    },
  }
}
