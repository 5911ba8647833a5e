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
  const databases = new Databases(urls)
  const { id } = await checkSchema(databases)
  const log = pino({ level: 'silent' })
  const ctx = await createJobContext({ databases, installation: id, kind: 'worker', leaseMs: 60_000, log })
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
