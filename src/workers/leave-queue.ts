import type { Worker } from 'bullmq'
import { within } from '../db/within.ts'

/** What the workers of both backends have and we use. */
export type AnyWorker = Pick<Worker, 'close' | 'cancelAllJobs' | 'disconnect'> & {
  waitUntilReady(): Promise<unknown>
}

/** Work on a queue. */
export type Work = {
  worker: AnyWorker
  /** what it is doing now */
  running: Set<Promise<void>>
  /** aborts what it does, also what comes when it is stopping already */
  stopping: AbortController
  connected: boolean
  /** nobody waits for it any more */
  left: boolean
  /** ends the connection that it was given */
  close: () => void
}

/** How long the queues may take to let go of somebody who has nothing to do there any more. */
const goodbyeMs = 2_000

/** Ends the work on a queue: stops what runs and waits for it, and not for a queue that cannot be reached. */
export async function leave(work: Work): Promise<void> {
  const { worker, running, stopping, connected, close } = work
  stopping.abort()
  worker.cancelAllJobs('the worker stops')
  // The close of one that was never connected would wait for the connection without end.
  const closed = worker.close(!connected)
  let ended: boolean
  do {
    await Promise.allSettled(running)
    ended = await inTime(closed)
    // One that was being fetched when the worker began to close is run all the same.
  } while (!ended && running.size > 0)
  work.left = true
  if (!ended) {
    await inTime(worker.disconnect())
    // BullMQ comes to its timers when the connection has closed, and a queue that is away never lets it.
    const timers = worker as unknown as Timers
    await timers.lockManager.close()
    timers.stalledCheckStopper?.()
  }
  close()
}

type Timers = { lockManager: { close(): Promise<void> }; stalledCheckStopper?: () => void }

/** False: a queue did not let go in time, or not without an error. */
export function inTime(goodbye: Promise<unknown>): Promise<boolean> {
  return within(goodbyeMs, 'leaving a queue', goodbye).then(
    () => true,
    () => false,
  )
}
