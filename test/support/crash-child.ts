import { killAt } from './kill-at.ts'
import { type ScenarioName, scenario } from './scenarios.ts'

/** Acts out a scenario until it comes to a step. */
const [which = '', step = '', urls = '{}', redis = ''] = process.argv.slice(2)
await killAt(step, JSON.parse(urls) as Record<string, string>, (ctx) =>
  scenario(which as ScenarioName, redis === '' ? undefined : redis).act(ctx),
)
