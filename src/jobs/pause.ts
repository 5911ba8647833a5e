import { setTimeout as sleep } from 'node:timers/promises'

/** Node takes a timer that is longer than this, 24 days, for one of a millisecond. */
export const longestTimerMs = 2 ** 31 - 1

/** Waits, at most until the signal aborts. */
export async function pause(ms: number, signal: AbortSignal): Promise<void> {
  try {
    await sleep(ms, undefined, { signal })
  } catch (error) {
    if (!signal.aborted) throw error
  }
}
