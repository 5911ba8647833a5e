import { setTimeout as sleep } from 'node:timers/promises'
import { EmbeddedServerError } from '../errors.ts'
import { processesOf } from './postgres-processes.ts'
import { findPostmaster } from './postmaster.ts'

const graceMs = 2_000
const killedMs = 10_000

/**
 * Ends the backends that outlived this data folder's postmaster. Idle ones end by themselves at once; one that runs a
 * query notices only after it. Killing them is safe: without a postmaster, what they did is recovered from the WAL.
 */
export async function endLeftovers(dataDir: string): Promise<void> {
  if (await gone(dataDir, graceMs)) return
  for (const pid of await processesOf(dataDir)) {
    try {
      process.kill(pid, 'SIGKILL')
    } catch {
      // It has ended by itself, or is not ours to end: then the wait below says so.
    }
  }
  if (await gone(dataDir, killedMs)) return
  throw new EmbeddedServerError(
    `processes of an earlier PostgreSQL still use ${dataDir} and cannot be ended: ${(await processesOf(dataDir)).join(', ')}`,
  )
}

/** True once no process is left, or once a postmaster has appeared, to whom they then belong. */
async function gone(dataDir: string, waitMs: number): Promise<boolean> {
  const deadline = Date.now() + waitMs
  while ((await processesOf(dataDir)).length > 0) {
    if ((await findPostmaster(dataDir)) !== undefined) return true
    if (Date.now() > deadline) return false
    await sleep(20)
  }
  return true
}
