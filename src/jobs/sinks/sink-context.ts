import type { JobContext } from '../context.ts'
import type { SinkContext } from './sink.ts'

/** What a sink is opened with. `worstRetryMs`: see SinkContext. */
export function sinkContext(ctx: JobContext, name: string, worstRetryMs = 95_000): SinkContext {
  const { databases, installation, log, clock } = ctx
  return { databases, installation, name, log, clock, worstRetryMs }
}
