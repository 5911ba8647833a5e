import { type ChildProcess, fork } from 'node:child_process'
import { once } from 'node:events'
import { afterAll } from 'vitest'

/** Processes that are to be killed. One stands by, loaded, while the one before it acts: the loading takes longest. */
export class Victims<Order extends object> {
  readonly #script: string
  readonly #args: string[]
  #standingBy: ChildProcess | undefined

  constructor(script: string, args: string[]) {
    this.#script = script
    this.#args = args
    afterAll(() => {
      this.#standingBy?.kill('SIGKILL')
    })
  }

  /** Gives the next one its order. `ended` has the signal that it died of, or else its exit code. */
  send(order: Order): { kill: () => void; ended: Promise<string> } {
    const child = this.#standingBy ?? this.#fork()
    this.#standingBy = this.#fork()
    const ended = once(child, 'exit').then(([code, signal]) => String(signal ?? code))
    child.send(order)
    return { kill: () => child.kill('SIGKILL'), ended }
  }

  #fork(): ChildProcess {
    return fork(this.#script, this.#args, { stdio: 'inherit', execArgv: [] })
  }
}
