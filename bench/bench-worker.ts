import { type ChildProcess, fork } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'

/** A worker process of the benches; `worker-process.ts` is what runs in it. */
export class BenchWorker {
  readonly #child: ChildProcess
  readonly #ended: Promise<never>

  /** Its sink and the stream that it writes to are named `stream`. */
  constructor(postgres: string, redis: string, stream: string) {
    this.#child = fork(join(import.meta.dirname, 'worker-process.js'), [postgres, redis, stream])
    this.#ended = once(this.#child, 'exit').then(([code]) => {
      throw new Error(`the worker of ${stream} ended by itself, with code ${String(code)}`)
    })
    this.#ended.catch(() => undefined)
  }

  /** Awaits something that the worker must live for. */
  async whileAlive<T>(work: Promise<T>): Promise<T> {
    return Promise.race([work, this.#ended])
  }

  /** Stops it; returns the megabytes that it took at its peak. */
  async stop(): Promise<number> {
    const said = once(this.#child, 'message')
    const exited = once(this.#child, 'exit')
    this.#child.send('stop')
    const [{ peakMb }] = (await this.whileAlive(said)) as [{ peakMb: number }]
    await exited
    return peakMb
  }

  kill(): void {
    this.#child.kill('SIGKILL')
  }
}
