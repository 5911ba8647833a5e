import assert from 'node:assert/strict'
import { join } from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'
import { afterAll, expect, inject } from 'vitest'
import { findJob, transactionOfJob } from '../../src/db/jobs.ts'
import { STEPS, type Step, watchSteps } from '../../src/db/steps.ts'
import type { JobContext } from '../../src/jobs/context.ts'
import { enqueueJob } from '../../src/jobs/enqueue-job.ts'
import type { JobDefinition } from '../../src/jobs/job-definition.ts'
import { recover } from '../../src/jobs/recovery.ts'
import { type RunSpec, runDistributed } from '../../src/jobs/run-distributed.ts'
import { openContext } from './database.ts'
import { importExample } from './example.ts'
import type { Order, Place } from './example-child.ts'
import {
  type ExampleJob,
  type ExampleName,
  exampleJobs,
  loadJob,
  type Plan,
  workOff,
} from './example-jobs.ts'
import { startPrivateServer } from './private-server.ts'
import { checkSettled } from './settled-transaction.ts'
import { Victims } from './victims.ts'

const compiled = inject('compiled')
/** Shorter than in the examples, for so many calls that are never answered; an answer on a busy machine comes before. */
const patienceMs = '2000'

type Entry = { kind: string; key: string; subject?: string; undone: boolean }
type Service = {
  url: string
  ledger: () => Entry[]
  done: (what: string) => Promise<unknown>
  close: () => void
}
type ReadsState = { runDistributed: (name: string, spec: RunSpec<unknown, unknown>) => Promise<unknown> }
type Reconciled = { problems: string[] }
type Reconcile = {
  reconcile: (facts: { state: unknown; ledger: Entry[] }) => Reconciled
  readState: (hf: ReadsState) => Promise<unknown>
}

type Parts = {
  urls: Record<string, string>
  ctx: JobContext
  /** by call and subject */
  faults: Record<string, string>
  service: Service
  definition: JobDefinition
  reconcile: Reconcile
}

export type Job = { plan: Plan; subject: string; id: string }

type End = {
  problems: string[]
  status: string | undefined
  committed: number
  /** what the service did and was not told to take back, of the calls that the job makes */
  standing: string[]
}

/**
 * An example's job, run many times on a server of its own, since the example asks the server whether anything is left
 * prepared, with the example's service in this process. Who is killed is a child; this process is the one that comes
 * after it and finishes.
 */
export class KilledExample {
  readonly #example: ExampleJob
  readonly #parts: Parts
  readonly #subjects: string[] = []
  readonly #told = new Set<string>()
  readonly #victims: Victims<Order>

  static async open(name: ExampleName): Promise<KilledExample> {
    const example: ExampleJob = exampleJobs[name]
    const server = await startPrivateServer()
    const urls: Record<string, string> = {}
    for (const participant of example.participants) urls[participant] = await server.newDatabase()
    const ctx = await openContext(urls)
    for (const participant of ctx.databases.all)
      await participant.sql.unsafe(example.tables[participant.name] ?? '')
    const faults: Record<string, string> = {}
    const { startService } = await importExample<{ startService: (faults: object) => Promise<Service> }>(
      'shared/stub-service.mjs',
    )
    const service = await startService(faults)
    afterAll(() => service.close())
    process.env[example.service] = service.url
    process.env.SERVICE_PATIENCE_MS = patienceMs
    const definition = await loadJob(join(compiled, 'examples'), name)
    const reconcile = await importExample<Reconcile>(`${name}/reconcile.mjs`)
    return new KilledExample(name, { urls, ctx, faults, service, definition, reconcile })
  }

  private constructor(name: ExampleName, parts: Parts) {
    this.#example = exampleJobs[name]
    this.#parts = parts
    this.#victims = new Victims(join(compiled, 'test/support/example-child.js'), [name])
  }

  async enqueue(plan: Plan): Promise<Job> {
    const { ctx, faults, definition } = this.#parts
    const subject = this.#example.subject(this.#subjects.length)
    this.#subjects.push(subject)
    for (const [call, fault] of Object.entries(plan.faults)) faults[`${call} ${subject}`] = fault
    const input = { ...this.#example.input(subject), ...plan.input }
    return { plan, subject, id: (await enqueueJob(ctx, definition, input)).jobId }
  }

  /** One process runs them all, and is killed when each of them is at its place. */
  async kill(at: readonly (readonly [Job, Place])[]): Promise<void> {
    const jobs = at.map(([{ id }, place]) => ({ id, place }))
    const { ended } = this.#victims.send({ urls: this.#parts.urls, jobs })
    expect(await ended).toBe('SIGKILL')
    await this.#lookDead()
  }

  /** Its process is killed in the middle of a call: what it asks for is done, and it has no answer yet. */
  async killInCall({ id, subject }: Job, call: string): Promise<void> {
    const done = this.#parts.service.done(`${call} ${subject}`)
    const { kill, ended } = this.#victims.send({ urls: this.#parts.urls, jobs: [{ id }] })
    await Promise.race([done, ended])
    kill()
    expect(await ended).toBe('SIGKILL')
    await this.#lookDead()
  }

  async finish(jobs: readonly Job[]): Promise<void> {
    const { ctx, definition } = this.#parts
    const { failed } = await recover(ctx)
    expect(failed).toBe(0)
    await Promise.all(jobs.map(({ id }) => workOff(ctx, definition, id)))
  }

  /** Finishes it, and returns every step that it comes by, in their order. */
  async record(job: Job): Promise<Place[]> {
    const places: Place[] = []
    const reached = (step: Step) => {
      places.push({ step, visit: places.filter((place) => place.step === step).length + 1 })
    }
    watchSteps({ steps: new Set(STEPS), reached })
    try {
      await this.finish([job])
    } finally {
      watchSteps(undefined)
    }
    return places
  }

  /** The calls that the service did something for; what is taken back is known by it only where it was done before. */
  callsOf({ subject }: Job): string[] {
    const entries = this.#parts.service.ledger().filter((entry) => entry.subject === subject)
    const calls = entries.flatMap(({ kind, undone }) => (undone ? [kind, `undo ${kind}`] : [kind]))
    return [...new Set(calls)]
  }

  /** What became of them, by the example's reconciliation of all jobs so far and by Holdfast's own records. */
  async endsOf(jobs: readonly Job[]): Promise<End[]> {
    const { ctx, service, reconcile } = this.#parts
    const hf: ReadsState = { runDistributed: (name, spec) => runDistributed(ctx, name, spec) }
    const state = await reconcile.readState(hf)
    const ledger = service.ledger()
    const found = reconcile.reconcile({ ...this.#example.asked(this.#subjects), state, ledger }).problems
    // Told once, to whom they belong, and not again to all who come later.
    const problems = found.filter((problem) => !this.#told.has(problem))
    for (const problem of problems) this.#told.add(problem)
    return Promise.all(
      jobs.map(async ({ id, subject }) => {
        const committed = await checkSettled(ctx, transactionOfJob(id))
        const standing = ledger.filter((entry) => entry.subject === subject && !entry.undone)
        return {
          problems,
          status: (await findJob(ctx.databases.primary.sql, id))?.status,
          committed: committed.length,
          standing: standing.map(({ kind, key }) =>
            committed.includes(key) ? kind : `${kind}, by another key`,
          ),
        }
      }),
    )
  }

  promised(jobs: readonly Job[]): End[] {
    return jobs.map(({ plan: { completes } }) => ({
      problems: [],
      status: completes ? 'completed' : 'failed',
      committed: completes ? 1 : 0,
      standing: completes ? [...this.#example.calls] : [],
    }))
  }

  /** The dead one's lease is over, and whatever it had sent is done: what stands now does not change by itself any more. */
  async #lookDead(): Promise<void> {
    const { databases, lease } = this.#parts.ctx
    await databases.primary.sql`
      update holdfast.workers set lease_until = clock_timestamp() - interval '1 second' where id <> ${lease.id}`
    for (const { sql } of databases.all) {
      const busy = () => sql`
        select from pg_stat_activity where backend_type = 'client backend' and datname = current_database()
          and state <> 'idle' and pid <> pg_backend_pid()`
      for (let looks = 0; (await busy()).length > 0; looks++) {
        assert(looks < 1_000, 'the connections of a process that is dead are still busy')
        await pause(10)
      }
    }
  }
}
