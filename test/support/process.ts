import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { inject, onTestFinished } from 'vitest'

const main = join(inject('compiled'), 'src/cli/main.js')

export type Ended = { code: number | null; signal: string | null; stdout: string; stderr: string }

/** A `holdfast` process; what it says can be waited for. It does not outlive its test. */
export class HoldfastProcess {
  readonly child: ChildProcess
  readonly ended: Promise<Ended>
  #stderr = ''
  #stdout = ''
  readonly #waiting = new Set<() => void>()

  constructor(args: string[], env: Record<string, string> = {}, cwd?: string) {
    const { DATABASE_URL: _d, REDIS_URL: _r, ...inherited } = process.env
    this.child = spawn(process.execPath, [main, ...args], {
      env: { ...inherited, ...env },
      cwd,
    })
    this.child.stdout?.setEncoding('utf8').on('data', (text: string) => {
      this.#stdout += text
    })
    this.child.stderr?.setEncoding('utf8').on('data', (text: string) => {
      this.#stderr += text
      for (const look of this.#waiting) look()
    })
    this.ended = once(this.child, 'close').then(([code, signal]) => {
      for (const look of this.#waiting) look()
      return {
        code: code as number | null,
        signal: signal as string | null,
        stdout: this.#stdout,
        stderr: this.#stderr,
      }
    })
    onTestFinished(() => {
      this.child.kill('SIGKILL')
    })
  }

  /** Resolves when standard error has this text; rejects when the process ends without it. */
  async says(text: string): Promise<void> {
    await new Promise<void>((resolve, reject) => {
      const look = () => {
        if (this.#stderr.includes(text)) resolve()
        else if (this.child.exitCode !== null || this.child.signalCode !== null) {
          reject(new Error(`ended without saying ${JSON.stringify(text)}:\n${this.#stderr}`))
        } else return
        this.#waiting.delete(look)
      }
      this.#waiting.add(look)
      look()
    })
  }
}
