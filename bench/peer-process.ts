import { type ChildProcess, fork } from 'node:child_process'
import { once } from 'node:events'

type Said = { ready?: true; rate?: number; problem?: string }

/** A program that does the same job with another library; it lives in `bench/peers`, where its packages are. */
export class PeerProcess {
  readonly #child: ChildProcess
  readonly #exited: Promise<never>

  private constructor(child: ChildProcess, program: string) {
    this.#child = child
    this.#exited = once(child, 'exit').then(([code]) => {
      throw new Error(`${program} ended by itself, with code ${String(code)}`)
    })
    this.#exited.catch(() => undefined)
  }

  static async start(program: string, args: string[]): Promise<PeerProcess> {
    const peer = new PeerProcess(fork(program, args), program)
    await peer.#next()
    return peer
  }

  /** Fills its outbox with so many events and drains it; events per second. */
  async rate(events: number): Promise<number> {
    this.#child.send(events)
    const { rate, problem } = await this.#next()
    if (rate === undefined) throw new Error(problem ?? 'the peer said no rate')
    return rate
  }

  stop(): void {
    this.#child.kill('SIGKILL')
  }

  async #next(): Promise<Said> {
    const [said] = (await Promise.race([once(this.#child, 'message'), this.#exited])) as [Said]
    return said
  }
}
