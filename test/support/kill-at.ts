import { pino } from 'pino'
import { Databases } from '../../src/db/databases.ts'
import { checkSchema } from '../../src/db/migrate.ts'
import { type Step, watchSteps } from '../../src/db/steps.ts'
import { createJobContext, type JobContext } from '../../src/jobs/context.ts'

/** Acts in this process, which kills itself, by SIGKILL, when it comes to a step; exits with 3 when it never does. */
export async function killAt(
  step: string,
  urls: Record<string, string>,
  act: (ctx: JobContext) => Promise<unknown>,
): Promise<never> {
  const ctx = await openVictim(urls)
  watchSteps({
    steps: new Set([step as Step]),
    reached: () => {
      process.kill(process.pid, 'SIGKILL')
      return new Promise(() => undefined)
    },
  })
  await act(ctx)
  process.exit(3)
}

/** What jobs need, in a process that will not close it. */
export async function openVictim(urls: Record<string, string>): Promise<JobContext> {
  const databases = new Databases(urls)
  const { id } = await checkSchema(databases)
  const log = pino({ level: 'silent' })
  return createJobContext({ databases, installation: id, kind: 'worker', leaseMs: 60_000, log })
}
