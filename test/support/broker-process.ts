import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { accessSync, constants } from 'node:fs'
import { delimiter, join } from 'node:path'

/** Where a program is: on the PATH, or where Debian puts what only root has on its PATH. */
export function findProgram(name: string, ...folders: string[]): string | undefined {
  const places = [...folders, ...(process.env.PATH ?? '').split(delimiter), '/usr/sbin', '/usr/local/sbin']
  return places
    .filter((folder) => folder !== '')
    .map((folder) => join(folder, name))
    .find((path) => {
      try {
        accessSync(path, constants.X_OK)
        return true
      } catch {
        return false
      }
    })
}

/** Says loudly that tests are left out; with CI=true it fails, since nothing may be left out there. */
export function leftOut(program: string): undefined {
  const text = `no ${program}: the tests on it are left out (Debian: apt-get install ${program})`
  if (process.env.CI === 'true') throw new Error(`${text}; with CI=true nothing may be left out`)
  console.warn(`\n*** ${text} ***\n`)
}

export type BrokerCommand = {
  program: string
  args?: readonly string[]
  env?: NodeJS.ProcessEnv
  /** what it says, on either output, once it takes connections; absent: nobody has to wait for it */
  ready?: RegExp
}

/**
 * Becomes the server, and leaves a guard in its process group that ends the whole group when the pipe on standard input
 * closes: that is, when this process is gone, however it ended.
 */
const guarded = 'exec 3<&0; (cat <&3; kill -9 0) >/dev/null 2>&1 & exec "$@" </dev/null 3<&-'

/**
 * A server as a process group of its own, so that a kill reaches everything it started, and which does not outlive this
 * process. It can be started again with the same command, thus on the same ports and folder.
 */
export class BrokerProcess {
  readonly #command: BrokerCommand
  #child: ChildProcess | undefined
  #exited: Promise<unknown> = Promise.resolve()
  said = ''

  constructor(command: BrokerCommand) {
    this.#command = command
  }

  /** False when it ended before it was ready: somebody else took its port. `said` then tells. */
  async start(): Promise<boolean> {
    const { program, args = [], env = process.env, ready } = this.#command
    const child = spawn('/bin/sh', ['-c', guarded, 'sh', program, ...args], { env, detached: true })
    this.#child = child
    this.#exited = once(child, 'exit')
    this.said = ''
    return new Promise<boolean>((resolve, reject) => {
      child.once('error', reject)
      child.once('exit', () => {
        this.#killGroup()
        this.#child = undefined
        resolve(false)
      })
      for (const output of [child.stdout, child.stderr]) {
        output.setEncoding('utf8').on('data', (text: string) => {
          this.said = (this.said + text).slice(-20_000)
          if (ready?.test(this.said)) resolve(true)
        })
      }
      if (!ready) child.once('spawn', () => resolve(true))
    })
  }

  /** Lets it end in its own way. */
  async stop(): Promise<void> {
    this.#child?.kill('SIGTERM')
    await this.#exited
  }

  /** Ends it as a power cut would. */
  async kill(): Promise<void> {
    this.#killGroup()
    await this.#exited
  }

  #killGroup(): void {
    if (this.#child?.pid === undefined) return
    try {
      process.kill(-this.#child.pid, 'SIGKILL')
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error
    }
  }
}
