import { pause } from './pause.ts'

/** The time by which this process judges how long something has lasted and waits; tests inject their own. Milliseconds. */
export type Clock = {
  now(): number
  /** waits, at most until the signal aborts */
  pause(ms: number, signal: AbortSignal): Promise<void>
}

export const systemClock: Clock = { now: () => Date.now(), pause }
