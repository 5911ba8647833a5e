import { readFile } from 'node:fs/promises'
import path from 'node:path'
import { hasCode } from './error-code.ts'
import { isPostmasterOf } from './postgres-processes.ts'
import { pidExists } from './process-identity.ts'

export type Postmaster = { pid: number; port: number; status: string }

/** The running postmaster of this data folder. What postmaster.pid says is believed only if that process is one. */
export async function findPostmaster(dataDir: string): Promise<Postmaster | undefined> {
  const written = await readPidFile(dataDir)
  if (written === undefined || !pidExists(written.pid)) return undefined
  return (await isPostmasterOf(written.pid, dataDir)) ? written : undefined
}

export function pidFileOf(dataDir: string): string {
  return path.join(dataDir, 'postmaster.pid')
}

export async function readPidFile(dataDir: string): Promise<Postmaster | undefined> {
  let lines: string[]
  try {
    lines = (await readFile(pidFileOf(dataDir), 'utf8')).split('\n')
  } catch (error) {
    if (hasCode(error, 'ENOENT')) return undefined
    throw error
  }
  // pid, data folder, start time, port, socket folder, listen address, shared memory, status
  const [pid, port] = [Number(lines[0]), Number(lines[3])]
  if (!Number.isSafeInteger(pid) || pid <= 0) return undefined
  return { pid, port, status: lines[7]?.trim() ?? '' }
}
