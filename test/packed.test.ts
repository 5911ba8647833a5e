import { execFile } from 'node:child_process'
import { cp, mkdtemp, readdir, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { expect, it, onTestFinished } from 'vitest'

const root = fileURLToPath(new URL('..', import.meta.url))
const run = promisify(execFile)

it('the README’s first job runs as printed in a new folder with the package that would be published', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'holdfast-packed-'))
  onTestFinished(() => rm(folder, { recursive: true, force: true }))
  const { DATABASE_URL: _d, REDIS_URL: _r, ...env } = process.env
  const inFolder = { cwd: folder, env: { ...env, LOG_LEVEL: 'error' }, maxBuffer: 16 * 1024 ** 2 }
  await run('npm', ['pack', '--silent', '--pack-destination', folder], { cwd: root })
  const tarball = (await readdir(folder)).find((name) => name.endsWith('.tgz'))
  expect(tarball).toBeDefined()
  await run('npm', ['init', '-y'], inFolder)
  await run('npm', ['install', '--no-audit', '--no-fund', join(folder, tarball ?? '')], inFolder)
  // docs.test.ts compares it with the README.
  await cp(join(root, 'examples/first-job.mjs'), join(folder, 'first-job.mjs'))
  const { stdout } = await run(process.execPath, ['first-job.mjs'], inFolder)
  expect(stdout).toContain("status: 'completed'")
  expect(stdout).toContain('rowsExpected: 5000n')
}, 600_000)
