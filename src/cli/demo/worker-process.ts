import { type Step, watchSteps } from '../../db/steps.ts'
import { resolveConfig } from '../../workers/config.ts'
import { createContext } from '../../workers/context.ts'
import { runUntilSignal } from '../../workers/lifecycle.ts'
import { createLog } from '../../workers/log.ts'
import { WorkerService } from '../../workers/worker.ts'
import { demoConfig } from './demo-config.ts'

/**
 * One worker process of the demo: `holdfast worker` with the demo's config, and a parent that may ask it to stop at a
 * step, so that the SIGKILL lands exactly there.
 */
export type ToWorker = { hold: Step } | { hold: null }
export type FromWorker = { ready: string } | { held: Step }

const [primary = '', target = '', redis = ''] = process.argv.slice(2)
const config = resolveConfig(demoConfig({ primary, target, redis: redis === '' ? undefined : redis }), {
  LOG_LEVEL: process.env.LOG_LEVEL ?? 'info',
})
const ctx = await createContext(config, 'worker', createLog(config.logLevel, 'demo worker'))

let release: () => void = () => undefined
process.on('message', ({ hold }: ToWorker) => {
  release()
  if (hold === null) return watchSteps(undefined)
  watchSteps({
    steps: new Set([hold]),
    reached: (step) =>
      new Promise((resolve) => {
        release = resolve
        tellParent({ held: step })
      }),
  })
})
// A parent that was killed must not leave workers behind.
process.once('disconnect', () => process.kill(process.pid, 'SIGTERM'))

const worker = new WorkerService(ctx)
tellParent({ ready: ctx.lease.id })
await runUntilSignal(ctx, worker)

function tellParent(message: FromWorker): void {
  process.send?.(message)
}
