import { killAt } from './kill-at.ts'
import { drainInto, type SinkSpec } from './relay-sinks.ts'

/** Relays to a sink until it comes to a step. */
const [url = '', step = '', spec = '{}'] = process.argv.slice(2)
await killAt(step, { primary: url }, (ctx) => drainInto(ctx, JSON.parse(spec) as SinkSpec))
