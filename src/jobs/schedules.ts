import { CronExpressionParser } from 'cron-parser'

/**
 * Due times, from a cron expression and nothing else: the same question has the same answer in every process and
 * whenever it is asked.
 */
export type Timetable = {
  /** five fields, or six with seconds first */
  readonly cron: string
  /** a name of the IANA time zone database */
  readonly tz: string
}

/**
 * What becomes of due times that nobody enqueued when they came.
 * - `skip`: those that are later than `graceMs` are passed over.
 * - `run-once`: one run for all of them, made for the newest.
 * - `backfill`: one run for each, the oldest first.
 */
export type MissedPolicy = 'skip' | 'run-once' | 'backfill'

export const missedPolicies = ['skip', 'run-once', 'backfill'] as const satisfies MissedPolicy[]

/** How late a due time of `skip` still runs: longer than what a lost tick costs, which is one round of recovery. */
export const graceMs = 120_000

/** What one look enqueues at most for one schedule; the next look goes on. */
export const maxRunsPerLook = 100

export type Plan = {
  /** the due times to enqueue now, the oldest first */
  due: Date[]
  /** every due time until here, inclusive, is enqueued or passed over */
  doneUntil: Date
}

/** What is to be done for a schedule that is done until `doneUntil`, when it is `now`. */
export function planRuns(
  { missed, ...timetable }: Timetable & { readonly missed: MissedPolicy },
  doneUntil: Date,
  now: Date,
): Plan {
  const first = nextDue(timetable, doneUntil)
  if (first > now) return { due: [], doneUntil }
  if (missed === 'run-once') {
    const newest = newestDue(timetable, first, now)
    return { due: [newest], doneUntil: newest }
  }
  const grace = new Date(now.getTime() - graceMs)
  const from = missed === 'skip' && grace > doneUntil ? grace : doneUntil
  const due: Date[] = []
  for (let at = nextDue(timetable, from); at <= now; at = nextDue(timetable, at)) {
    due.push(at)
    if (due.length === maxRunsPerLook) break
  }
  return { due, doneUntil: due.at(-1) ?? from }
}

/** The last due time until `now`, where `first` is one: by halving, since a year has many seconds. */
function newestDue(timetable: Timetable, first: Date, now: Date): Date {
  let newest = first
  // There is none after it. Due times are whole seconds.
  let end = now.getTime()
  while (end - newest.getTime() >= 1_000) {
    const middle = Math.floor((newest.getTime() + end) / 2)
    const next = nextDue(timetable, new Date(middle))
    if (next.getTime() <= now.getTime()) newest = next
    else end = middle
  }
  return newest
}

/** How long after a change of the clocks cron-parser's answer depends on whether the search began before it. */
const transitionMs = 3 * 60 * 60 * 1000
const halfHourMs = 30 * 60 * 1000

/**
 * The first due time after an instant. Throws for an expression that cron-parser refuses, or that has none.
 *
 * cron-parser answers differently within the hours after a change of the clocks, depending on where its search starts
 * (5.10.3: from inside the hour that exists twice it finds the second 02:30 as well). So there the search starts before
 * the change, as if it had come from far. And where the clocks change by half an hour (Lord Howe) it finds nothing at
 * all from some starts ("loop limit exceeded"), or a time before them; then the search starts a little later, and may
 * pass over a time.
 */
export function nextDue(timetable: Timetable, after: Date): Date {
  const start = new Date(after.getTime() - transitionMs)
  const times =
    offsetOf(timetable.tz, start) === offsetOf(timetable.tz, after)
      ? undefined
      : CronExpressionParser.parse(timetable.cron, { tz: timetable.tz, currentDate: start })
  if (times && !times.fields.hour.isWildcard) {
    try {
      for (;;) {
        const at = times.next().toDate()
        if (at > after) return at
      }
    } catch {
      // As below.
    }
  }
  return nextFrom(timetable, after)
}

function nextFrom({ cron, tz }: Timetable, after: Date): Date {
  let failure: unknown
  for (let tries = 0; tries < 7; tries++) {
    const currentDate = new Date(after.getTime() + tries * halfHourMs)
    const times = CronExpressionParser.parse(cron, { tz, currentDate })
    try {
      const at = times.next().toDate()
      if (at > after) return at
    } catch (error) {
      failure = error
    }
  }
  throw new Error(`no time of ${cron} is found after ${after.toISOString()}`, { cause: failure })
}

/** By time zone; one takes longer to make than to use. */
const formats = new Map<string, Intl.DateTimeFormat>()

/** As text, which is compared alone. */
function offsetOf(timeZone: string, at: Date): string {
  const format =
    formats.get(timeZone) ?? new Intl.DateTimeFormat('en-US', { timeZone, timeZoneName: 'longOffset' })
  formats.set(timeZone, format)
  const parts = format.formatToParts(at)
  return parts.find(({ type }) => type === 'timeZoneName')?.value ?? ''
}

/** What is wrong with a time zone, or undefined. */
export function timeZoneProblem(tz: string): string | undefined {
  try {
    offsetOf(tz, new Date(0))
    return undefined
  } catch {
    return `${JSON.stringify(tz)} is no time zone; write one of the IANA database, as Europe/Berlin or UTC`
  }
}

/** What is wrong with a cron expression, or undefined. */
export function cronProblem(cron: string): string | undefined {
  const wrong = (why: string) => `${JSON.stringify(cron)} is no cron expression: ${why}`
  const fields = cron.trim().split(/\s+/)
  if (!/^@[a-z]+$/.test(cron) && fields.length !== 5 && fields.length !== 6)
    return wrong('it has five fields, or six with seconds first')
  if (fields.some((field) => /(^|[,/-])H/.test(field)))
    return wrong('H stands for another number in each process; write the number')
  try {
    nextFrom({ cron, tz: 'UTC' }, new Date())
    return undefined
  } catch (error) {
    return wrong(error instanceof Error ? error.message : String(error))
  }
}
