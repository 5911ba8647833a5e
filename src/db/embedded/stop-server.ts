import { rm, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { EmbeddedServerError } from '../errors.ts'
import type { Account } from './account.ts'
import type { Binaries } from './binaries.ts'
import type { Layout } from './layout.ts'
import { findPostmaster } from './postmaster.ts'
import { identityOf, isAlive, type ProcessIdentity } from './process-identity.ts'
import { runBinary } from './run-binary.ts'

/**
 * Stops the server, with the lock held. The marker closes a race: killed right after the server was told to stop, we
 * leave one that still says "ready"; the next start must not attach to it but finish the stop first.
 */
export async function stopServer(layout: Layout, binaries: Binaries, account: Account): Promise<void> {
  const running = await findPostmaster(layout.data)
  if (running !== undefined) {
    await writeFile(layout.stopping, '')
    await stop(layout, binaries, account, running.pid)
  }
  await rm(layout.stopping, { force: true })
}

async function stop(layout: Layout, binaries: Binaries, account: Account, pid: number): Promise<void> {
  let output = ''
  const postmaster = await identityOf(pid)
  for (const mode of ['fast', 'immediate']) {
    const args = ['stop', '-w', '-t', '30', '-m', mode, '-D', path.basename(layout.data)]
    const result = await runBinary(account, binaries.pgCtl, args, { cwd: layout.dir, timeoutMs: 40_000 })
    // Only that it is gone counts: it may have ended for another reason, and pg_ctl looks no further than its pid file.
    if (await isGone(postmaster)) return
    output = result.output
  }
  throw new EmbeddedServerError(`PostgreSQL in ${layout.data} (pid ${pid}) did not stop: ${output}`)
}

/** By its start time, not its command line: an ending process loses that first, while its port is still taken. */
async function isGone(postmaster: ProcessIdentity): Promise<boolean> {
  const deadline = Date.now() + 5_000
  while (await isAlive(postmaster)) {
    if (Date.now() > deadline) return false
    await sleep(5)
  }
  return true
}
