import { spawn } from 'node:child_process'
import type { Account } from './account.ts'

export type BinaryResult = {
  ok: boolean
  /** the last of what it printed, or why it did not run; never empty when not ok */
  output: string
}

const keptChars = 8_000

/** Runs one of PostgreSQL's programs to its end. Never rejects. */
export function runBinary(
  account: Account,
  command: string,
  args: readonly string[],
  options: { cwd: string; timeoutMs: number },
): Promise<BinaryResult> {
  const [program = command, ...rest] = [...account.wrapper, command, ...args]
  return new Promise((resolve) => {
    const child = spawn(program, rest, {
      cwd: options.cwd,
      env: cleanEnvironment(),
      // A session of its own: Ctrl-C in the terminal would reach pg_ctl, and it would stop the starting server.
      detached: process.platform !== 'win32',
      stdio: ['ignore', 'pipe', 'pipe'],
      windowsHide: true,
      ...account.ids,
    })
    let output = ''
    let timedOut = false
    const collect = (chunk: string) => {
      output = (output + chunk).slice(-keptChars)
    }
    child.stdout.setEncoding('utf8').on('data', collect)
    child.stderr.setEncoding('utf8').on('data', collect)
    const timer = setTimeout(() => {
      timedOut = true
      killGroup(child.pid)
    }, options.timeoutMs)
    const finish = (ok: boolean, reason: string) => {
      clearTimeout(timer)
      const why = timedOut ? `no end within ${options.timeoutMs / 1000} s` : reason
      resolve({
        ok,
        output: ok ? output.trim() : [output.trim(), why].filter((part) => part !== '').join('\n'),
      })
    }
    child.once('error', (error) => finish(false, error.message))
    child.once('close', (code, signal) => {
      finish(code === 0, `${program} ended with ${signal ?? `exit code ${code}`}`)
    })
  })
}

/** What the caller's environment says about PostgreSQL, the locale or libraries must not reach the server. */
function cleanEnvironment(): NodeJS.ProcessEnv {
  const inherited = process.platform === 'win32' ? ['PATH', 'SystemRoot', 'TEMP', 'TMP'] : ['PATH']
  const env: NodeJS.ProcessEnv = { LC_ALL: 'C' }
  for (const name of inherited) {
    const value = process.env[name]
    if (value !== undefined) env[name] = value
  }
  return env
}

function killGroup(pid: number | undefined): void {
  if (pid === undefined) return
  try {
    process.kill(process.platform === 'win32' ? pid : -pid, 'SIGKILL')
  } catch {
    // It has ended by itself.
  }
}
