import { execFile } from 'node:child_process'
import { chmod, copyFile, cp, mkdir, mkdtemp, rm, symlink } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'

const root = fileURLToPath(new URL('../..', import.meta.url))
const tsc = join(root, 'node_modules/typescript/bin/tsc')

/**
 * What the tests start as processes, compiled once for a run: some two hundred processes then start without a compiler in
 * each. Within node_modules, so that packages are found and nothing of it is ever committed.
 */
export async function compileProcesses(): Promise<{ dir: string; remove(): Promise<void> }> {
  const cache = join(root, 'node_modules/.cache')
  await mkdir(cache, { recursive: true })
  const dir = await mkdtemp(join(cache, 'processes-'))
  // One of the processes runs as another user.
  await chmod(dir, 0o755)
  const emit = ['--noEmit', 'false', '--noCheck', '--rootDir', root, '--outDir', dir]
  await promisify(execFile)(process.execPath, [tsc, '-p', join(root, 'tsconfig.json'), ...emit])
  await copyFile(join(root, 'package.json'), join(dir, 'package.json'))
  await cp(join(root, 'src/db/migrations'), join(dir, 'src/db/migrations'), { recursive: true })
  await copyFile(join(root, 'src/db/roles.sql'), join(dir, 'src/db/roles.sql'))
  // As a package: what imports `holdfast` in here gets what was compiled, through `exports`.
  await symlink(join(dir, 'src'), join(dir, 'dist'), 'junction')
  await cp(join(root, 'examples'), join(dir, 'examples'), { recursive: true })
  return { dir, remove: () => rm(dir, { recursive: true, force: true }) }
}
