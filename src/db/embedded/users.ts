import { randomUUID } from 'node:crypto'
import { mkdir, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { isAlive, ownIdentity, parseIdentity } from './process-identity.ts'

/*
 * Who uses the server: one file per use, `<pid>-<random>`, holding the process's start time.
 * Every function here must be called with the lock held. Hence a file that cannot be parsed was left by a process that
 * died while writing it, and counts for nothing.
 */

/** Returns the file that stands for this use. */
export async function addUser(folder: string): Promise<string> {
  await mkdir(folder, { recursive: true, mode: 0o700 })
  const file = path.join(folder, `${process.pid}-${randomUUID()}`)
  await writeFile(file, JSON.stringify(await ownIdentity()), { flag: 'wx' })
  return file
}

export async function removeUser(file: string): Promise<void> {
  await rm(file, { force: true })
}

/** Counts the uses of living processes and forgets those of dead ones. */
export async function countUsers(folder: string): Promise<number> {
  let living = 0
  for (const name of await readdir(folder)) {
    const file = path.join(folder, name)
    const user = parseIdentity(await readFile(file, 'utf8'))
    if (user !== undefined && (await isAlive(user))) living += 1
    else await removeUser(file)
  }
  return living
}
