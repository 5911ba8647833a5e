import { HoldfastError } from '../../src/db/errors.ts'
import { sqlstateOf } from '../../src/db/sqlstate.ts'

/** Notes what a step returned or threw. */
export type See = (step: unknown) => Promise<void>

const volatile = new Set([
  'attempt',
  'idempotencyKey',
  'owner',
  'correlationId',
  'deadline',
  'createdAt',
  'updatedAt',
  'startedAt',
  'finishedAt',
  'at',
])
// The fake shows more of a transaction than the table does.
const shownByFakeOnly = new Set(['votes', 'compensates', 'compensationError', 'history'])
const ids = /[0-9a-f]{8}-?(?:[0-9a-f]{4}-?){3}[0-9a-f]{12}/g

/** What a step came to, without what differs from run to run. */
function seen(value: unknown): unknown {
  if (value instanceof HoldfastError) return { error: value.code }
  if (value instanceof Error) return { error: sqlstateOf(value) ?? seen(value.message) }
  if (Array.isArray(value)) return value.map(seen)
  if (typeof value === 'string') return value.replaceAll(ids, 'ID')
  if (typeof value !== 'object' || value === null || value instanceof Date) return value
  const entries = Object.entries(value).filter(([key]) => !shownByFakeOnly.has(key))
  return Object.fromEntries(
    entries.map(([key, entry]: [string, unknown]) => {
      if (key === 'tokens') return [key, Object.keys(entry as object)]
      if (key === 'runAt') return [key, (entry as Date).getTime() > Date.now() + 60_000 ? 'later' : 'now']
      return [key, volatile.has(key) && entry !== null ? 'some' : seen(entry)]
    }),
  )
}

/** What every step of a story came to. */
export async function tell(story: (see: See) => unknown): Promise<unknown[]> {
  const steps: unknown[] = []
  await story(async (step) => {
    steps.push(seen(await Promise.resolve(step).catch((error: unknown) => error)))
  })
  return steps
}
