import type { RejectedEventError } from '../../db/errors.ts'
import type { OutboxEvent } from '../../db/outbox-event.ts'
import type { Published, Rejection } from './sink.ts'

/**
 * Publishes event by event: those of one key one after the other, different keys side by side, at most `concurrency` at
 * once. After a rejection nothing more of that key is tried. The first error that `publish` throws stops it: what was on
 * its way is waited for, and nothing else begins. So does the signal, and after `longestMs` the page is given back with
 * what was taken until then: a prepared page must not stand for long.
 */
export async function publishByKey(
  events: readonly OutboxEvent[],
  concurrency: number,
  publish: (event: OutboxEvent) => Promise<RejectedEventError | undefined>,
  signal?: AbortSignal,
): Promise<Published> {
  const lanes = new Map<string, OutboxEvent[]>()
  for (const event of events) {
    const lane = event.partitionkey ?? `\0${event.id}`
    const waiting = lanes.get(lane)
    if (waiting) waiting.push(event)
    else lanes.set(lane, [event])
  }
  const rejected: Rejection[] = []
  const taken: OutboxEvent[] = []
  let failure: { error: unknown } | undefined
  let late = false
  let unfinished = false
  const timer = setTimeout(() => {
    late = true
  }, longestMs)
  const queue = lanes.values()
  const work = async () => {
    for (const lane of queue) {
      for (const [i, event] of lane.entries()) {
        if (failure) return
        if (late || signal?.aborted === true) {
          unfinished = true
          return
        }
        try {
          const rejection = await publish(event)
          if (!rejection) {
            taken.push(event)
            continue
          }
          rejected.push({ event, reason: rejection.message, permanent: rejection.permanent })
          for (const later of lane.slice(i + 1)) rejected.push({ event: later, reason: waitsBehind })
          break
        } catch (error) {
          failure ??= { error }
          return
        }
      }
    }
  }
  await Promise.all(Array.from({ length: Math.min(concurrency, lanes.size) }, work))
  clearTimeout(timer)
  return failure || unfinished ? { rejected, stopped: { ...failure, taken } } : { rejected }
}

/** Below what the relay waits for a page (publishMs), less what the last events on their way may take. */
const longestMs = 12_000

export const waitsBehind = 'waits behind a rejected event of its key'
