import type { Sql } from '../db/databases.ts'
import { listRevokedRuns } from '../db/jobs.ts'
import type { JobDefinition } from './job-definition.ts'

/** The jobs that this process has in hand: each once, however often it is delivered here. */
export class RunningJobs {
  readonly #runs = new Map<string, { name: string; run?: string; controller: AbortController }>()

  get ids(): string[] {
    return [...this.#runs.keys()]
  }

  /** Whether one more of a definition may run here. */
  hasRoom({
    name,
    concurrency = Number.POSITIVE_INFINITY,
  }: Pick<JobDefinition, 'name' | 'concurrency'>): boolean {
    return this.#count(name) < concurrency
  }

  #count(name: string): number {
    let count = 0
    for (const run of this.#runs.values()) if (run.name === name) count++
    return count
  }

  /** Undefined: it runs here already. The signal aborts when its run is revoked. */
  enter(id: string, name: string): AbortSignal | undefined {
    if (this.#runs.has(id)) return undefined
    const controller = new AbortController()
    this.#runs.set(id, { name, controller })
    return controller.signal
  }

  claimed(id: string, run: string): void {
    const entry = this.#runs.get(id)
    if (entry) entry.run = run
  }

  leave(id: string): void {
    this.#runs.delete(id)
  }

  /** Tells the runs that were cancelled, or that another process has taken over, to stop. */
  async look(sql: Sql, owner: string): Promise<void> {
    const claimed = [...this.#runs].flatMap(([id, { run }]) => (run === undefined ? [] : [{ id, run }]))
    if (claimed.length === 0) return
    for (const id of await listRevokedRuns(sql, owner, claimed))
      this.#runs.get(id)?.controller.abort(new Error('the job was cancelled, or another process has it'))
  }
}
