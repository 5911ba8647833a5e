import { randomBytes } from 'node:crypto'
import { mkdtemp, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, inject } from 'vitest'
import { createDatabase } from '../../src/db/create-database.ts'
import { processesOf } from '../../src/db/embedded/postgres-processes.ts'
import { type EmbeddedServer, startEmbedded } from '../../src/db/embedded/server.ts'
import { freePort } from './free-port.ts'

/** A cluster of its own, which tests stop as a crash would and start again on the same port. */
class PrivateServer {
  readonly #settings: Record<string, string>
  readonly #uses: EmbeddedServer[] = []
  #dir = ''
  #port = ''

  constructor(settings: Record<string, string>) {
    this.#settings = settings
  }

  async start(): Promise<void> {
    if (this.#dir === '') this.#dir = await mkdtemp(join(inject('folder'), 'server-'))
    if (this.#port === '') this.#port = String(await freePort())
    const settings = { fsync: 'off', full_page_writes: 'off', ...this.#settings, port: this.#port }
    this.#uses.push(await startEmbedded({ dir: this.#dir, settings }))
  }

  async end(): Promise<void> {
    await Promise.all(this.#uses.map((use) => use.release()))
    await rm(this.#dir, { recursive: true, force: true, maxRetries: 5 })
  }

  /** At once, as a crash: nothing is written that was not written yet, and no client is told more than a warning. */
  async kill(): Promise<void> {
    process.kill(this.#current.pid, 'SIGQUIT')
    await expect
      .poll(async () => (await processesOf(join(this.#dir, 'data'))).length, { interval: 10 })
      .toBe(0)
  }

  newDatabase(): Promise<string> {
    return createDatabase(this.#current.url, `test_${randomBytes(6).toString('hex')}`)
  }

  get #current(): EmbeddedServer {
    return this.#uses.at(-1)!
  }
}

/** For the tests of a `describe`; where all of them are left out it is never started. */
export function usePrivateServer(settings: Record<string, string> = {}): PrivateServer {
  const server = new PrivateServer(settings)
  beforeAll(() => server.start())
  afterAll(() => server.end())
  return server
}

/**
 * The same at once, for files that find out on it which tests they have. Where no hook runs, since the file is only listed
 * or fails before, the folder goes with the run's, and a server without its folder ends by itself.
 */
export async function startPrivateServer(settings: Record<string, string> = {}): Promise<PrivateServer> {
  const server = new PrivateServer(settings)
  afterAll(() => server.end())
  await server.start()
  return server
}
