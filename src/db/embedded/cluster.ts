import { randomBytes, randomUUID } from 'node:crypto'
import {
  appendFile,
  mkdir,
  open,
  readdir,
  readFile,
  rename,
  rm,
  stat,
  unlink,
  writeFile,
} from 'node:fs/promises'
import path from 'node:path'
import { EmbeddedServerError } from '../errors.ts'
import { type Account, giveTo } from './account.ts'
import type { Binaries } from './binaries.ts'
import { hasCode } from './error-code.ts'
import type { Layout } from './layout.ts'
import { runBinary } from './run-binary.ts'
import { settingsFile } from './settings.ts'

/*
 * Making the data folder, with the lock held.
 *
 * 1. Killed inside initdb: it works in a folder `init-<random>`, and `data` appears by one rename when it is complete.
 *    With the lock held, any other `init-*` folder is a dead process's leftover.
 * 2. An initdb that outlives its killed parent goes on writing into its own leftover folder, never into ours. It may
 *    fill a folder that is being removed: a later start removes the rest.
 * 3. The password is on disk before `data` appears, so there is no data folder whose password is lost.
 */

const workPrefix = 'init-'

export async function ensureCluster(layout: Layout, binaries: Binaries, account: Account): Promise<void> {
  await removeLeftovers(layout)
  if (!(await hasCluster(layout))) await createCluster(layout, binaries, account)
}

async function hasCluster(layout: Layout): Promise<boolean> {
  try {
    await stat(layout.data)
    return true
  } catch (error) {
    if (hasCode(error, 'ENOENT')) return false
    throw error
  }
}

async function createCluster(layout: Layout, binaries: Binaries, account: Account): Promise<void> {
  const work = path.join(layout.dir, `${workPrefix}${randomUUID()}`)
  await mkdir(work, { mode: 0o700 })
  await giveTo(account, work)
  try {
    const password = randomBytes(24).toString('base64url')
    await runInitdb(work, password, binaries, account)
    await appendFile(path.join(work, 'data', 'postgresql.conf'), `\ninclude '${settingsFile}'\n`)
    await writeDurably(work, layout.password, password)
    await rename(path.join(work, 'data'), layout.data)
    await syncFolder(layout.dir)
  } finally {
    await removeFolder(work)
  }
}

export async function readPassword(layout: Layout): Promise<string> {
  try {
    return (await readFile(layout.password, 'utf8')).trim()
  } catch (cause) {
    throw new EmbeddedServerError(
      `the password file ${layout.password} of the data folder ${layout.data} cannot be read: ${String(cause)}`,
      { cause },
    )
  }
}

async function runInitdb(
  work: string,
  password: string,
  binaries: Binaries,
  account: Account,
): Promise<void> {
  const passwordFile = path.join(work, 'initdb-password')
  await writeFile(passwordFile, `${password}\n`, { mode: 0o600, flag: 'wx' })
  await giveTo(account, passwordFile)
  const encoding = ['-E', 'UTF8', '--locale-provider=builtin', '--builtin-locale=C.UTF-8', '--locale=C']
  const access = ['-U', 'postgres', '-A', 'scram-sha-256', '--pwfile=initdb-password']
  try {
    const result = await runBinary(account, binaries.initdb, ['-D', 'data', ...encoding, ...access], {
      cwd: work,
      timeoutMs: 120_000,
    })
    if (!result.ok) throw new EmbeddedServerError(`initdb failed: ${result.output}`)
  } finally {
    await unlink(passwordFile)
  }
}

async function writeDurably(work: string, file: string, content: string): Promise<void> {
  const temporary = path.join(work, 'password')
  const handle = await open(temporary, 'wx', 0o600)
  try {
    await handle.writeFile(`${content}\n`)
    await handle.sync()
  } finally {
    await handle.close()
  }
  await rename(temporary, file)
}

/** Without it a power failure could undo the rename and leave the data where leftovers are removed. */
async function syncFolder(folder: string): Promise<void> {
  if (process.platform === 'win32') return
  const handle = await open(folder, 'r')
  try {
    await handle.sync()
  } finally {
    await handle.close()
  }
}

async function removeLeftovers(layout: Layout): Promise<void> {
  for (const name of await readdir(layout.dir))
    if (name.startsWith(workPrefix)) await removeFolder(path.join(layout.dir, name))
}

async function removeFolder(folder: string): Promise<void> {
  await rm(folder, { recursive: true, force: true, maxRetries: 3 }).catch((error: unknown) => {
    if (!hasCode(error, 'ENOTEMPTY')) throw error
  })
}
