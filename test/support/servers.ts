import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { TestProject } from 'vitest/node'
import { startEmbedded } from '../../src/db/embedded/server.ts'
import { compileProcesses } from './compiled.ts'
import { startRedis } from './redis-server.ts'
import { createTemplates } from './templates.ts'

declare module 'vitest' {
  interface ProvidedContext {
    /** superuser URLs of two private clusters */
    postgres: { east: string; west: string }
    /** a private Redis; undefined where there is no redis-server */
    redis: string | undefined
    /** for what files of tests put on disk; removed after the run */
    folder: string
    /** where the repository stands compiled, for what is started as a process */
    compiled: string
  }
}

/**
 * The servers of one test run: two PostgreSQL clusters and a Redis, private, on free ports, gone afterwards. The tests
 * kill clients and cut connections but never a server, so nothing here needs to reach a disk.
 */
export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  const dir = await mkdtemp(join(tmpdir(), 'holdfast-test-'))
  const settings = { fsync: 'off', full_page_writes: 'off' }
  // First, and alone: when it fails there is no server yet that would be left behind.
  const compiled = await compileProcesses()
  const [east, west, redis] = await Promise.all([
    startEmbedded({ dir: join(dir, 'east'), settings }),
    startEmbedded({ dir: join(dir, 'west'), settings }),
    startRedis(),
  ])
  await Promise.all([createTemplates(east.url), createTemplates(west.url)])
  if (!redis) {
    const text =
      'no redis-server on the PATH: the tests on Redis are left out (Debian: apt-get install redis-server)'
    if (process.env.CI === 'true') throw new Error(`${text}; with CI=true nothing may be left out`)
    console.warn(`\n*** ${text} ***\n`)
  }
  project.provide('postgres', { east: east.url, west: west.url })
  project.provide('redis', redis?.url)
  project.provide('folder', dir)
  project.provide('compiled', compiled.dir)
  return async () => {
    await Promise.all([east.release(), west.release(), redis?.stop()])
    await Promise.all([compiled.remove(), rm(dir, { recursive: true, force: true, maxRetries: 5 })])
  }
}
