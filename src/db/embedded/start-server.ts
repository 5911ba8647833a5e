import { rm } from 'node:fs/promises'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { EmbeddedServerError } from '../errors.ts'
import type { Account } from './account.ts'
import type { Binaries } from './binaries.ts'
import { freePort } from './free-port.ts'
import type { Layout } from './layout.ts'
import { endLeftovers } from './leftover-processes.ts'
import { clusterNameOf } from './postgres-processes.ts'
import { findPostmaster, type Postmaster, pidFileOf, readPidFile } from './postmaster.ts'
import { pidExists } from './process-identity.ts'
import { runBinary } from './run-binary.ts'
import { prepareLog, readLogTail } from './server-log.ts'
import { type Settings, writeSettings } from './settings.ts'

export type StartContext = {
  layout: Layout
  binaries: Binaries
  account: Account
  settings: Settings
  choosePort?: () => Promise<number>
}

/*
 * Getting the server of an existing data folder to run, with the lock held.
 *
 * 1. The process that started it was killed: the server runs, maybe still recovering. Attach and wait.
 * 2. That process was killed before postmaster.pid was written: two postmasters start, PostgreSQL lets one live, the
 *    other logs "lock file already exists". Look again and attach.
 * 3. The postmaster was killed and its backends have not noticed yet: "pre-existing shared memory block". Give them a
 *    moment to end by themselves, then end them; only after that is it safe to start.
 * 4. postmaster.pid names a process that is not this folder's postmaster: PostgreSQL refuses to start for as long as
 *    any process has that pid. The file is removed only when that is so; else PostgreSQL sorts it out itself. Should
 *    a postmaster of case 2 write its file just then, the shared memory check still keeps the second one out.
 * 5. The port was taken between choosing and binding: choose another.
 */

const attempts = 10
const readyMs = 60_000

export async function ensureServer(context: StartContext): Promise<Postmaster> {
  const { layout } = context
  let failure = ''
  for (let attempt = 1; attempt <= attempts; attempt += 1) {
    await waitUntilStopped(layout.data)
    const running = await findPostmaster(layout.data)
    const started = running === undefined ? await startFresh(context) : await waitUntilReady(layout, running)
    if (typeof started !== 'string') return started
    failure = started
    await sleep(100 * attempt)
  }
  throw new EmbeddedServerError(`PostgreSQL did not start after ${attempts} attempts: ${failure}`)
}

/** The reason when another attempt may help; throws when it cannot. */
async function startFresh(context: StartContext): Promise<Postmaster | string> {
  const { layout, binaries, account, settings, choosePort = freePort } = context
  await endLeftovers(layout.data)
  await removeForeignPidFile(layout.data)
  const logStart = await prepareLog(layout.log, account)
  await writeSettings(layout.data, account, await choosePort(), settings)
  const name = await clusterNameOf(layout.data)
  // Relative paths, and nothing of the caller's in -o: pg_ctl makes a shell's command line out of all of it.
  const args = ['start', '-w', '-t', String(readyMs / 1000), '-D', path.basename(layout.data)]
  const result = await runBinary(
    account,
    binaries.pgCtl,
    [...args, '-l', path.basename(layout.log), '-o', `-c cluster_name=${name}`],
    { cwd: layout.dir, timeoutMs: readyMs + 10_000 },
  )
  const running = result.ok ? await findPostmaster(layout.data) : undefined
  if (running !== undefined) return running
  const log = await readLogTail(layout.log, logStart)
  const reason = log === '' ? result.output : log
  if (/lock file .* already exists|pre-existing shared memory block/.test(log)) return reason
  if (/could not bind|Address already in use/.test(log) && settings['port'] === undefined) return reason
  throw new EmbeddedServerError(`PostgreSQL did not start: ${reason}`)
}

/** The reason when it ended instead, so that another attempt may help. */
async function waitUntilReady(layout: Layout, first: Postmaster): Promise<Postmaster | string> {
  const deadline = Date.now() + readyMs
  const late = `the PostgreSQL that was already starting (pid ${first.pid}) did not get ready`
  for (let current: Postmaster | undefined = first; current !== undefined; ) {
    if (current.status === 'ready') return current
    if (Date.now() > deadline) throw new EmbeddedServerError(`${late}: ${await readLogTail(layout.log, 0)}`)
    await sleep(20)
    current = await findPostmaster(layout.data)
  }
  return `${late}: ${await readLogTail(layout.log, 0)}`
}

async function waitUntilStopped(dataDir: string): Promise<void> {
  const deadline = Date.now() + readyMs
  while ((await findPostmaster(dataDir))?.status === 'stopping') {
    if (Date.now() > deadline)
      throw new EmbeddedServerError(`the PostgreSQL of ${dataDir} has been stopping for too long`)
    await sleep(20)
  }
}

async function removeForeignPidFile(dataDir: string): Promise<void> {
  const written = await readPidFile(dataDir)
  if (written === undefined || !pidExists(written.pid)) return
  if ((await findPostmaster(dataDir)) === undefined) await rm(pidFileOf(dataDir), { force: true })
}
