import { constants } from 'node:fs'
import { lstat, open, rename } from 'node:fs/promises'
import type { Account } from './account.ts'

const rotateAboveBytes = 10 * 1024 * 1024
const tailBytes = 4_000

/**
 * Makes the log ready for a server about to start, and returns where its lines will begin. Only then is rotating
 * possible: a running server keeps the file open.
 */
export async function prepareLog(file: string, account: Account): Promise<number> {
  const size = (await lstat(file).catch(() => undefined))?.size ?? 0
  if (size > rotateAboveBytes) await rename(file, `${file}.1`)
  // The folder may be another user's while we are root: never give away what a planted link points to.
  const flags = constants.O_CREAT | constants.O_APPEND | constants.O_WRONLY | constants.O_NOFOLLOW
  const handle = await open(file, flags, 0o600)
  try {
    if (account.ids !== undefined) await handle.chown(account.ids.uid, account.ids.gid)
    return (await handle.stat()).size
  } finally {
    await handle.close()
  }
}

/** The end of what was logged after the position `from`. */
export async function readLogTail(file: string, from: number): Promise<string> {
  const handle = await open(file, 'r')
  try {
    const { size } = await handle.stat()
    const start = Math.max(from, size - tailBytes)
    const buffer = Buffer.alloc(Math.max(0, size - start))
    await handle.read(buffer, 0, buffer.length, start)
    return buffer.toString('utf8').trim()
  } finally {
    await handle.close()
  }
}
