import { randomUUID } from 'node:crypto'
import { link, readdir, readFile, truncate, unlink, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { EmbeddedServerError } from '../errors.ts'
import { hasCode } from './error-code.ts'
import { isAlive, ownIdentity, parseIdentity, pidExists } from './process-identity.ts'

/*
 * A mutex between processes that a kill -9 frees at once and that nobody can take from a living holder.
 *
 * Every turn is a file `lock.<N>` naming its holder; the highest N counts. It is free once its holder has emptied the
 * file or is no longer alive. To take a turn, create N+1, then look again.
 *
 * 1. Two contenders find N free: link(2) lets one create N+1, the other sees EEXIST and starts over.
 * 2. A reader must not see a half-written holder (it would look free): the file is written under another name and
 *    linked into place complete.
 * 3. A contender that found N free falls asleep, and wakes when N+1 has come and gone and been cleaned. Its link
 *    succeeds, but the second look shows a higher turn: it withdraws. Its file was never the highest, so nobody ever
 *    took it for a holder.
 * 4. For 3 the highest file must never disappear: releasing empties it and does not remove it. Holders clean only
 *    turns well below their own, so that a directory listing under way cannot miss both an old and a new highest.
 * 5. The pid of a dead holder is given to another program: its start time differs, so it does not hold the lock.
 * 6. Power fails: a file whose content never reached the disk reads as empty, that is free, and no holder is left.
 */

const keptGenerations = 8
const pollMs = 20

/** Runs `work` while no other process runs under the lock of this (existing) folder. */
export async function withGenerationLock<T>(
  folder: string,
  waitMs: number,
  work: () => Promise<T>,
): Promise<T> {
  const generation = await acquire(folder, waitMs)
  try {
    return await work()
  } finally {
    await truncate(lockFile(folder, generation))
  }
}

async function acquire(folder: string, waitMs: number): Promise<number> {
  const deadline = Date.now() + waitMs
  const claim = path.join(folder, `claim-${process.pid}-${randomUUID()}`)
  await writeFile(claim, JSON.stringify(await ownIdentity()), { flag: 'wx' })
  try {
    for (;;) {
      const highest = await highestGeneration(folder)
      if (highest === 0 || (await isFree(folder, highest))) {
        if (await takeTurn(folder, claim, highest + 1)) return highest + 1
        continue
      }
      if (Date.now() > deadline) throw await lockTimeout(folder, highest, waitMs)
      await sleep(pollMs + Math.random() * pollMs)
    }
  } finally {
    await removeFile(claim)
  }
}

/** False when another was faster, or when the turn had passed long ago (races 1 and 3). */
export async function takeTurn(folder: string, claim: string, generation: number): Promise<boolean> {
  try {
    await link(claim, lockFile(folder, generation))
  } catch (error) {
    if (hasCode(error, 'EEXIST')) return false
    throw error
  }
  if ((await highestGeneration(folder)) !== generation) {
    await removeFile(lockFile(folder, generation))
    return false
  }
  await clean(folder, generation)
  return true
}

async function isFree(folder: string, generation: number): Promise<boolean> {
  const content = await readHolder(folder, generation)
  if (content === undefined) return false
  if (content === '') return true
  const holder = parseIdentity(content)
  return holder !== undefined && !(await isAlive(holder))
}

/** undefined when the file is gone: it was not the highest any more. */
async function readHolder(folder: string, generation: number): Promise<string | undefined> {
  try {
    return (await readFile(lockFile(folder, generation), 'utf8')).replaceAll('\0', '').trim()
  } catch (error) {
    if (hasCode(error, 'ENOENT')) return undefined
    throw error
  }
}

async function highestGeneration(folder: string): Promise<number> {
  return Math.max(0, ...(await readdir(folder)).map(generationOf))
}

async function clean(folder: string, generation: number): Promise<void> {
  for (const name of await readdir(folder)) {
    const old = generationOf(name)
    if (old > 0 && old < generation - keptGenerations) await removeFile(path.join(folder, name))
    const [, claimant] = /^claim-(\d+)-/.exec(name) ?? []
    if (claimant !== undefined && !pidExists(Number(claimant))) await removeFile(path.join(folder, name))
  }
}

async function lockTimeout(folder: string, generation: number, waitMs: number): Promise<EmbeddedServerError> {
  const holder = parseIdentity((await readHolder(folder, generation)) ?? '')
  const who = holder === undefined ? 'another process' : `process ${holder.pid}`
  return new EmbeddedServerError(
    `${who} has been starting or stopping the embedded PostgreSQL for more than ${waitMs / 1000} s ` +
      `(${lockFile(folder, generation)}). Is it stopped or stuck? End it and try again.`,
  )
}

async function removeFile(file: string): Promise<void> {
  await unlink(file).catch((error: unknown) => {
    if (!hasCode(error, 'ENOENT')) throw error
  })
}

function generationOf(name: string): number {
  const [, generation] = /^lock\.(\d+)$/.exec(name) ?? []
  return Number(generation ?? 0)
}

function lockFile(folder: string, generation: number): string {
  return path.join(folder, `lock.${generation}`)
}
