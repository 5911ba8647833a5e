import type { Context } from './context.ts'
import type { WorkerService } from './worker.ts'

/**
 * Runs a worker until SIGTERM or SIGINT, then drains: no new jobs, the running ones stop where they can be resumed.
 * The drain deadline or a second signal ends the process with exit code 1; what was under way is then in doubt or
 * unstarted, and resumed by the next worker.
 */
export async function runUntilSignal(ctx: Context, worker: WorkerService): Promise<void> {
  const { promise: signalled, stop } = nextSignal()
  try {
    // A start waits without end for queues that cannot be reached: a signal is heard all the same.
    const signal = await Promise.race([worker.start().then(() => signalled), signalled])
    // Listened for before anybody can know that the first one arrived: unheard, it would end the process its own way.
    void nextSignal().promise.then((again) => {
      ctx.log.warn({ signal: again }, 'second signal, ending at once')
      process.exit(1)
    })
    ctx.log.info({ signal }, 'stopping')
    if (!(await worker.stop())) {
      ctx.log.error('the drain deadline passed; what still runs is resumed by another worker')
      process.exit(1)
    }
  } finally {
    stop()
    await ctx.close()
  }
  ctx.log.info('stopped')
  process.exit(0)
}

function nextSignal(): { promise: Promise<NodeJS.Signals>; stop: () => void } {
  let listener: NodeJS.SignalsListener = () => undefined
  const promise = new Promise<NodeJS.Signals>((resolve) => {
    listener = resolve
  })
  const stop = () => {
    process.off('SIGTERM', listener)
    process.off('SIGINT', listener)
  }
  process.once('SIGTERM', listener)
  process.once('SIGINT', listener)
  return { promise, stop }
}
