import { AsyncLocalStorage } from 'node:async_hooks'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import { STEPS, type Step, watchSteps } from '../../src/db/steps.ts'
import { recover } from '../../src/jobs/recovery.ts'
import { type ExampleName, loadJob, workOff } from './example-jobs.ts'
import { openVictim } from './kill-at.ts'

/** A point of a run: the step that it comes to, and for which time. */
export type Place = { step: Step; visit: number }
export type Order = { urls: Record<string, string>; jobs: { id: string; place?: Place }[] }
type Held = { step: Step | undefined; left: number }

/**
 * A worker that kills itself, by SIGKILL, when each of its jobs has come to its place; there they stay until all have.
 * Exits with 3 when one of them comes to its end instead. What it is to do comes as a message when it is wanted: loading
 * everything takes longer than the rest.
 */
const [name = ''] = process.argv.slice(2)
const examples = fileURLToPath(new URL('../../examples', import.meta.url))
const definition = await loadJob(examples, name as ExampleName)
process.once('disconnect', () => process.exit())
const [{ urls, jobs }] = (await once(process, 'message')) as [Order]

const held = new AsyncLocalStorage<Held>()
const never = new Promise<void>(() => undefined)
let missing = jobs.length
watchSteps({
  steps: new Set(STEPS),
  reached: (step) => {
    const job = held.getStore()
    if (job && step === job.step && --job.left === 0 && --missing === 0) process.kill(process.pid, 'SIGKILL')
    // Whatever else the same job does at that time stops at its next step.
    return job && job.left <= 0 ? never : undefined
  },
})
const places = jobs.map(({ place }): Held => ({ step: place?.step, left: place?.visit ?? 1 }))
const ctx = await openVictim(urls)
// What recovery comes by counts as the first job's, which is alone where it is to stay in there.
await held.run(places[0]!, () => recover(ctx))
await Promise.race(jobs.map(({ id }, i) => held.run(places[i]!, () => workOff(ctx, definition, id))))
process.exit(3)
