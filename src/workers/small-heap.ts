import { setFlagsFromString } from 'node:v8'

/**
 * For a process that does nothing but carry pages: each lives for some milliseconds, long enough to be promoted to the
 * collector's old generation, which by default may grow to several times of what is alive before it is looked at. Collecting
 * it sooner costs milliseconds, since little is alive. The young generation stays at what it has grown to by now: see
 * hold-young-generation.ts.
 *
 * Not for a library to decide: a program with a large heap of its own would collect it all the time.
 */
export function keepHeapSmall(): void {
  setFlagsFromString('--heap-growing-percent=10')
}

/** As Node has it. */
export function letHeapGrow(): void {
  setFlagsFromString('--semi-space-growth-factor=2')
}
