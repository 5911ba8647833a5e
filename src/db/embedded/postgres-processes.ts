import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import { readdir, readFile, readlink, realpath } from 'node:fs/promises'
import path from 'node:path'
import { promisify } from 'node:util'
import { pidExists } from './process-identity.ts'

/*
 * Telling this data folder's PostgreSQL processes from all others, also after their postmaster has died.
 *
 * Each carries the folder's `cluster_name` in its command line, which everybody may read. On Linux the working folder
 * tells too, for a server that somebody started by hand; it is unreadable where the process runs as another user, as
 * with root in a container that lacks the ptrace capability.
 */

type Listed = {
  pid: number
  /** the first argument, where the platform keeps arguments apart */
  program: string
  command: string
}

export async function clusterNameOf(dataDir: string): Promise<string> {
  const digest = createHash('sha256').update(await realpath(dataDir))
  return `holdfast-${digest.digest('hex').slice(0, 16)}`
}

/** Whether the process is a postmaster (not a backend) of exactly this data folder. */
export async function isPostmasterOf(pid: number, dataDir: string): Promise<boolean> {
  if (process.platform === 'win32') return pidExists(pid)
  const listed = await findProcess(pid)
  if (listed === undefined || listed.command.startsWith('postgres: ')) return false
  return (await membership(dataDir))(listed)
}

/** Pids of every process of this data folder's server, postmaster included. */
export async function processesOf(dataDir: string): Promise<number[]> {
  const belongs = await membership(dataDir)
  const found: number[] = []
  for (const listed of await listProcesses()) if (await belongs(listed)) found.push(listed.pid)
  return found
}

async function membership(dataDir: string): Promise<(listed: Listed) => Promise<boolean>> {
  const name = await clusterNameOf(dataDir)
  const folder = await realpath(dataDir)
  // Anchored so that the shell and the pg_ctl that start it do not match.
  const postmaster = new RegExp(`(^|/)postgres -D \\S+ -c cluster_name=${name}( |$)`)
  return async ({ pid, program, command }) => {
    if (command.startsWith(`postgres: ${name}: `) || postmaster.test(command)) return true
    const isPostgres = path.basename(program) === 'postgres' || program.startsWith('postgres: ')
    return isPostgres && (await readlink(`/proc/${pid}/cwd`).catch(() => '')) === folder
  }
}

async function findProcess(pid: number): Promise<Listed | undefined> {
  if (process.platform === 'linux') return readCommandLine(pid)
  return (await listProcesses()).find((listed) => listed.pid === pid)
}

async function listProcesses(): Promise<Listed[]> {
  if (process.platform === 'win32') return []
  if (process.platform !== 'linux') return listWithPs()
  const pids = (await readdir('/proc')).filter((name) => /^\d+$/.test(name)).map(Number)
  return (await Promise.all(pids.map(readCommandLine))).filter((listed) => listed !== undefined)
}

async function listWithPs(): Promise<Listed[]> {
  const { stdout } = await promisify(execFile)('ps', ['-axww', '-o', 'pid=,command='])
  return stdout.split('\n').flatMap((line) => {
    const [, pid, command] = /^\s*(\d+)\s+(.*)$/.exec(line) ?? []
    return pid === undefined || command === undefined ? [] : [{ pid: Number(pid), program: '', command }]
  })
}

/** undefined for a process that has ended, zombies included. */
async function readCommandLine(pid: number): Promise<Listed | undefined> {
  const line = await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '')
  const [program = ''] = line.split('\0')
  const command = line.replaceAll('\0', ' ').trim()
  return command === '' ? undefined : { pid, program, command }
}
