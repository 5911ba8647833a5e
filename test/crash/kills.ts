import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { expect, inject, it } from 'vitest'
import { STEPS, type Step } from '../../src/db/steps.ts'
import { newDatabases, openContext } from '../support/database.ts'
import { databasesOf, type ScenarioName, scenario, scenariosOf, takeOver } from '../support/scenarios.ts'

const redis = inject('redis')
const child = join(inject('compiled'), 'test/support/crash-child.js')

/** A process is killed at every step of every scenario that runs on so many databases; another one finishes. */
export function killAtEveryStep(databases: number): void {
  for (const step of STEPS) {
    for (const which of scenariosOf[step]) {
      if (which === 'page-stream' && redis === undefined) continue
      for (const others of databasesOf(which)) {
        if (Object.keys(others).length + 1 !== databases) continue
        it(`${which} killed at ${step} is finished by another process`, async () => {
          const urls = await newDatabases(others)
          const ctx = await openContext(urls)
          const run = scenario(which, redis)
          await run.arrange(ctx)
          expect(await killedAt(which, step, urls)).toBe('SIGKILL')
          await takeOver(ctx, run)
          await run.check(ctx, step)
        })
      }
    }
  }
}

async function killedAt(which: ScenarioName, step: Step, urls: Record<string, string>): Promise<string> {
  const args = [child, which, step, JSON.stringify(urls), redis ?? '']
  const { 0: code, 1: signal } = await once(spawn(process.execPath, args, { stdio: 'inherit' }), 'exit')
  return String(signal ?? code)
}
