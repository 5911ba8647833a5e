import { type ChildProcess, fork } from 'node:child_process'
import { once } from 'node:events'
import { createWriteStream, type WriteStream } from 'node:fs'
import { fileURLToPath } from 'node:url'
import type { Step } from '../../db/steps.ts'
import type { FromWorker, ToWorker } from './worker-process.ts'

type Member = { process: ChildProcess; owner: string; exited: Promise<unknown> }

/** The demo's worker processes: kept at a fixed number, killed on request. */
export class Crew {
  readonly #args: readonly string[]
  readonly #log: WriteStream
  readonly #members = new Set<Member>()
  #onHeld: ((member: Member, step: Step) => void) | undefined

  constructor(urls: { primary: string; target: string; redis: string | undefined }, logFile: string) {
    this.#args = [urls.primary, urls.target, urls.redis ?? '']
    this.#log = createWriteStream(logFile, { flags: 'a', mode: 0o600 })
  }

  /** Starts one worker; resolves when it has its lease id. */
  async hire(): Promise<void> {
    const extension = import.meta.url.endsWith('.ts') ? 'ts' : 'js'
    const script = fileURLToPath(new URL(`./worker-process.${extension}`, import.meta.url))
    const child = fork(script, this.#args, { stdio: ['ignore', 'ignore', 'pipe', 'ipc'] })
    child.stderr?.pipe(this.#log, { end: false })
    const member: Member = { process: child, owner: '', exited: once(child, 'exit') }
    const ready = new Promise<void>((resolve, reject) => {
      child.on('message', (message: FromWorker) => {
        if ('held' in message) return this.#onHeld?.(member, message.held)
        member.owner = message.ready
        resolve()
      })
      child.once('exit', (code, signal) => {
        this.#members.delete(member)
        reject(
          new Error(`a worker ended at its start (${signal ?? code}); its log is ${String(this.#log.path)}`),
        )
      })
    })
    this.#members.add(member)
    await ready
  }

  /**
   * Kills the first worker that comes to a step, exactly there, by SIGKILL; when none comes within `patienceMs`, or
   * without a step, any worker. Returns the owner id of the victim.
   */
  async kill(step: Step | undefined, patienceMs = 5_000): Promise<{ owner: string; at: Step | 'anywhere' }> {
    const held = step === undefined ? undefined : await this.#hold(step, patienceMs)
    const victim = held ?? [...this.#members][Math.floor(Math.random() * this.#members.size)]
    if (!victim) throw new Error('no worker is left to kill')
    victim.process.kill('SIGKILL')
    await victim.exited
    return { owner: victim.owner, at: held && step ? step : 'anywhere' }
  }

  async dismiss(): Promise<void> {
    const members = [...this.#members]
    for (const member of members) member.process.kill('SIGTERM')
    await Promise.all(members.map((member) => member.exited))
    await new Promise<void>((resolve) => {
      this.#log.end(resolve)
    })
  }

  async #hold(step: Step, patienceMs: number): Promise<Member | undefined> {
    let timer: NodeJS.Timeout | undefined
    const held = await new Promise<Member | undefined>((resolve) => {
      this.#onHeld = (member, at) => {
        if (at === step) resolve(member)
      }
      timer = setTimeout(() => resolve(undefined), patienceMs)
      this.#tellAll({ hold: step })
    })
    clearTimeout(timer)
    this.#onHeld = undefined
    this.#tellAll({ hold: null }, held)
    return held
  }

  #tellAll(message: ToWorker, except?: Member): void {
    for (const member of this.#members) {
      if (member !== except && member.process.connected) member.process.send(message)
    }
  }
}
