import { execFile } from 'node:child_process'
import { readFile } from 'node:fs/promises'
import { promisify } from 'node:util'

/** A pid alone is not an identity: pids are reused. With the start time it is. */
export type ProcessIdentity = {
  pid: number
  /** opaque, compared for equality only; empty where the platform cannot tell */
  startedAt: string
}

type StartTime = { state: 'gone' } | { state: 'unknown' } | { state: 'running'; startedAt: string }

let own: Promise<ProcessIdentity> | undefined

export function ownIdentity(): Promise<ProcessIdentity> {
  own ??= identityOf(process.pid)
  return own
}

export async function identityOf(pid: number): Promise<ProcessIdentity> {
  const start = await startTimeOf(pid)
  return { pid, startedAt: start.state === 'running' ? start.startedAt : '' }
}

/** True also when the process cannot be told apart from a later one with its pid: never steal from the living. */
export async function isAlive(identity: ProcessIdentity): Promise<boolean> {
  const start = await startTimeOf(identity.pid)
  if (start.state === 'gone') return false
  if (start.state === 'unknown' || identity.startedAt === '') return true
  return start.startedAt === identity.startedAt
}

export function parseIdentity(text: string): ProcessIdentity | undefined {
  try {
    const value: unknown = JSON.parse(text)
    if (typeof value !== 'object' || value === null || !('pid' in value) || !('startedAt' in value))
      return undefined
    const { pid, startedAt } = value
    if (!Number.isSafeInteger(pid) || typeof pid !== 'number' || typeof startedAt !== 'string')
      return undefined
    return pid > 0 ? { pid, startedAt } : undefined
  } catch {
    return undefined
  }
}

/** Whether any process has this pid, whoever owns it. A zombie counts. */
export function pidExists(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    return error instanceof Error && 'code' in error && error.code === 'EPERM'
  }
}

async function startTimeOf(pid: number): Promise<StartTime> {
  if (!pidExists(pid)) return { state: 'gone' }
  try {
    if (process.platform === 'linux') return await linuxStartTime(pid)
    if (process.platform === 'win32') return { state: 'unknown' }
    const { stdout } = await promisify(execFile)('ps', ['-o', 'lstart=', '-p', String(pid)], {
      env: { ...process.env, LC_ALL: 'C', TZ: 'UTC' },
    })
    return stdout.trim() === '' ? { state: 'unknown' } : { state: 'running', startedAt: stdout.trim() }
  } catch {
    return pidExists(pid) ? { state: 'unknown' } : { state: 'gone' }
  }
}

async function linuxStartTime(pid: number): Promise<StartTime> {
  const stat = await readFile(`/proc/${pid}/stat`, 'utf8')
  // The command name is free text in parentheses and may itself hold spaces and parentheses.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  const [processState] = fields
  if (processState === 'Z' || processState === 'X') return { state: 'gone' }
  // Ticks count from boot, so the boot belongs to the identity.
  const boot = await readFile('/proc/sys/kernel/random/boot_id', 'utf8').catch(() => '')
  return { state: 'running', startedAt: `${boot.trim()}:${fields[19] ?? ''}` }
}
