import type { EventLimit } from '../db/outbox.ts'
import { type Route, routeTo } from './routes.ts'
import type { Sink } from './sinks/sink.ts'

/**
 * How large an event may be, by its type: what the pickiest of the sinks takes that it is routed to. Checked when it is
 * published, where somebody can do something about it; what slips through goes to the dead list.
 */
export function eventLimits(
  sinks: ReadonlyMap<string, Pick<Sink, 'maxEventBytes'>>,
  routes: readonly Route[] | undefined,
): (type: string) => EventLimit | undefined {
  const limits = [...sinks].flatMap(([sink, { maxEventBytes: bytes }]) =>
    bytes === undefined ? [] : { sink, bytes, wants: routeTo(sink, routes) },
  )
  const byBytes = limits.toSorted((a, b) => a.bytes - b.bytes)
  return (type) => byBytes.find(({ wants }) => wants(type))
}
