import { describe, expect, it } from 'vitest'
import type { Step } from '../../src/db/steps.ts'
import type { Place } from '../support/example-child.ts'
import { type ExampleJob, type ExampleName, exampleJobs, type Plan } from '../support/example-jobs.ts'
import { KilledExample } from '../support/killed-example.ts'
import { type ScenarioName, scenariosOf } from '../support/scenarios.ts'

/** How many jobs die together: a process gets eight slots for what it stages. */
const together = 8

/**
 * An example's own job is killed wherever it can be, while the service that it calls is faulty in every way that the stub
 * knows; another process finishes it. Then the example's own reconciliation of databases and ledger must find nothing
 * wrong, the job be at the end that the plan says, and rows, audit and markers agree.
 *
 * Where: at every step that a run of the plan, recorded unharmed, comes by, each time that it does. One process has
 * several jobs, and is killed when each of them is at another place. Then, one by one: in the middle of every call that
 * the service did something for; and under one plan a second process is killed as well, at every step that a takeover
 * comes by, up to where it stages anew and all is as in a first run.
 */
export async function killExample(
  name: ExampleName,
  twice: { plan: string; first: readonly Step[] },
): Promise<void> {
  const example = await KilledExample.open(name)
  const { plans, calls }: ExampleJob = exampleJobs[name]
  const passed: Place[] = []
  const called: string[] = []

  const record = async (plan: Plan, first?: Place) => {
    const job = await example.enqueue(plan)
    if (first) await example.kill([[job, first]])
    const places = await example.record(job)
    return { places, calls: example.callsOf(job), jobs: [job] }
  }

  for (const [title, plan] of Object.entries(plans)) {
    const unharmed = await record(plan)
    const places = unharmed.places.filter(({ step }) => !step.startsWith('recovery.'))
    passed.push(...places)
    called.push(...unharmed.calls)
    describe(`${name}, ${title}`, () => {
      it('unharmed', async () => {
        expect(await example.endsOf(unharmed.jobs)).toEqual(example.promised(unharmed.jobs))
      })
      it.each(inGroups(places))('killed at %s', async (_, group) => {
        const jobs = await Promise.all(group.map(() => example.enqueue(plan)))
        await example.kill(jobs.map((job, i) => [job, group[i]!]))
        await example.finish(jobs)
        const byPlace = <T>(values: T[]) =>
          Object.fromEntries(values.map((value, i) => [nameOf(group[i]!), value]))
        expect(byPlace(await example.endsOf(jobs))).toEqual(byPlace(example.promised(jobs)))
      })
      it.each(unharmed.calls)('killed in the call: %s', async (call) => {
        const jobs = [await example.enqueue(plan)] as const
        await example.killInCall(jobs[0], call)
        await example.finish(jobs)
        expect(await example.endsOf(jobs)).toEqual(example.promised(jobs))
      })
    })
  }

  const plan = plans[twice.plan]
  if (!plan) throw new Error(`no plan ${twice.plan}`)
  for (const step of twice.first) {
    const first = { step, visit: 1 }
    const { places, jobs: taken } = await record(plan, first)
    const anew = places.findIndex((place) => place.step === 'begin.recorded')
    const takeover = anew === -1 ? places : places.slice(0, anew)
    passed.push(...takeover)
    describe(`${name}, ${twice.plan}, killed at ${step}`, () => {
      it('and taken over', async () => {
        expect(await example.endsOf(taken)).toEqual(example.promised(taken))
      })
      it.each(takeover)('and who takes over at $step ($visit)', async (second) => {
        const jobs = [await example.enqueue(plan)] as const
        await example.kill([[jobs[0], first]])
        await example.kill([[jobs[0], second]])
        await example.finish(jobs)
        expect(await example.endsOf(jobs)).toEqual(example.promised(jobs))
      })
    })
  }

  it('comes by every step and every call that such a job can come by', () => {
    const steps = passed.map(({ step }) => step)
    expect(steps).toEqual(expect.arrayContaining(stepsOf('job', 'job-that-fails', 'job-taking-over')))
    expect(called).toEqual(expect.arrayContaining(calls.flatMap((call) => [call, `undo ${call}`])))
  })
}

const nameOf = ({ step, visit }: Place) => (visit === 1 ? step : `${step} (${visit})`)

function inGroups(places: readonly Place[]): [names: string, group: Place[]][] {
  const count = Math.ceil(places.length / together)
  return Array.from({ length: count }, (_, n) => {
    const group = places.slice(n * together, (n + 1) * together)
    return [group.map(nameOf).join(', '), group]
  })
}

function stepsOf(...names: ScenarioName[]): string[] {
  const comesBy = (all: ScenarioName[]) => names.some((name) => all.includes(name))
  return Object.entries(scenariosOf).flatMap(([step, all]) => (comesBy(all) ? [step] : []))
}
