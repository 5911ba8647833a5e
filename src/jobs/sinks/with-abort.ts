import { SinkUnavailableError } from '../../db/errors.ts'

/**
 * Runs `work` with a promise that rejects once the signal aborts, for racing against what the work waits for: one
 * listener for all the waits of a page.
 */
export async function withAbort<T>(
  signal: AbortSignal,
  work: (aborted: Promise<never>) => Promise<T>,
): Promise<T> {
  let stop = () => {}
  const aborted = new Promise<never>((_, reject) => {
    stop = () => reject(new SinkUnavailableError('stopped before the broker had acknowledged every event'))
  })
  aborted.catch(() => undefined)
  if (signal.aborted) stop()
  signal.addEventListener('abort', stop, { once: true })
  try {
    return await work(aborted)
  } finally {
    signal.removeEventListener('abort', stop)
  }
}
