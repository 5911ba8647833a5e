import { RejectedEventError, SinkUnavailableError } from '../db/errors.ts'
import { messageOf } from '../db/message-of.ts'
import type { Circuit } from './circuit.ts'
import type { JobContext } from './context.ts'
import type { OutboxWatch } from './outbox-watch.ts'
import type { Relay } from './publish-outbox.ts'

export type RunParts = {
  circuit: Circuit
  watch: OutboxWatch
  retryMs: number
  maxRetryMs: number
  /** this shard waits for one event that its sink rejects, or does not (any longer); said once at the start, too */
  onBlocked(this: void, error: Error | undefined): void
}

/**
 * Runs a relay until the signal aborts or another process has its cursor. A sink that cannot be reached opens its circuit,
 * for all of its shards; a shard that waits for one event, and a database in trouble, hold up this relay alone.
 */
export async function runOutbox(
  ctx: JobContext,
  relay: Relay,
  { circuit, watch, retryMs, maxRetryMs, onBlocked }: RunParts,
  signal: AbortSignal,
): Promise<void> {
  let failures = 0
  // Whoever ran the cursor before may have said that it waits, and cannot take it back any more.
  let blocked = true
  while (!signal.aborted) {
    let leave = await circuit.pass(signal)
    let publishedBefore = 0
    let seen = watch.wakes
    try {
      const { outcome } = await relay.drain(signal, async (idle, published) => {
        // What was published without a probe may have been before the sink went away.
        if (leave.probe && published > publishedBefore) circuit.succeeded()
        else circuit.left(leave)
        publishedBefore = published
        failures = 0
        if (blocked && !circuit.open) {
          blocked = false
          onBlocked(undefined)
        }
        const found = await watch.wait(idle, signal, seen)
        seen = watch.wakes
        leave = await circuit.pass(signal)
        return found
      })
      circuit.left(leave)
      if (outcome !== 'idle') return
    } catch (error) {
      if (error instanceof SinkUnavailableError && !signal.aborted) {
        circuit.failed(error, leave)
        continue
      }
      circuit.left(leave)
      if (signal.aborted) return
      failures++
      if (error instanceof RejectedEventError) {
        blocked = true
        onBlocked(error)
      }
      const waitMs = Math.random() * Math.min(maxRetryMs, retryMs * 2 ** failures)
      ctx.log.warn(
        { err: error, failures, waitMs: Math.round(waitMs) },
        `outbox relay, trying again: ${messageOf(error)}`,
      )
      await ctx.clock.pause(waitMs, signal)
    }
  }
}
