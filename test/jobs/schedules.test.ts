import { CronExpressionParser } from 'cron-parser'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import {
  cronProblem,
  graceMs,
  type MissedPolicy,
  maxRunsPerLook,
  nextDue,
  planRuns,
  type Timetable,
  timeZoneProblem,
} from '../../src/jobs/schedules.ts'

const minuteMs = 60_000
const hourMs = 60 * minuteMs
const start = Date.parse('2026-01-01T00:00:00Z')

/** Which minutes of which hours, as a cron expression in UTC, and its due times told without cron-parser. */
const hourly = fc
  .record({
    minutes: fc.uniqueArray(fc.integer({ min: 0, max: 59 }), { minLength: 1, maxLength: 4 }),
    hours: fc.uniqueArray(fc.integer({ min: 0, max: 23 }), { minLength: 1, maxLength: 24 }),
  })
  .map(({ minutes, hours }) => ({
    timetable: { cron: `${minutes.join(',')} ${hours.join(',')} * * *`, tz: 'UTC' },
    between: (after: number, until: number): number[] => {
      const found: number[] = []
      for (let at = Math.ceil((after + 1) / minuteMs) * minuteMs; at <= until; at += minuteMs) {
        const date = new Date(at)
        if (minutes.includes(date.getUTCMinutes()) && hours.includes(date.getUTCHours())) found.push(at)
      }
      return found
    },
  }))
const anyInstant = fc.integer({ min: start, max: start + 30 * 24 * hourMs })
/** Often a due time itself. */
const instant = fc.oneof(
  anyInstant,
  anyInstant.map((at) => at - (at % minuteMs)),
)

/** The due times of looks at these times, one after the other. */
function lookAt(
  timetable: Timetable,
  missed: MissedPolicy,
  from: number,
  looks: readonly number[],
): number[][] {
  let doneUntil = new Date(from)
  return looks.map((at) => {
    const plan = planRuns({ ...timetable, missed }, doneUntil, new Date(at))
    expect(plan.doneUntil.getTime()).toBeGreaterThanOrEqual(doneUntil.getTime())
    doneUntil = plan.doneUntil
    return plan.due.map((due) => due.getTime())
  })
}

const looksAfter = fc.array(fc.integer({ min: 1, max: 12 * 60 }), { minLength: 1, maxLength: 8 })
const timesOf = (from: number, gaps: readonly number[]) => {
  let at = from
  return gaps.map((minutes) => (at += minutes * minuteMs))
}

describe('due times', () => {
  it('are the minutes that the expression names', () => {
    fc.assert(
      fc.property(hourly, instant, ({ timetable, between }, after) => {
        expect(nextDue(timetable, new Date(after)).getTime()).toBe(between(after, after + 25 * hourMs)[0])
      }),
      { numRuns: 200 },
    )
  })

  it('with backfill run each once, the oldest first, at most so many at a look', () => {
    fc.assert(
      fc.property(hourly, instant, looksAfter, ({ timetable, between }, from, gaps) => {
        const looks = timesOf(from, gaps)
        const last = looks.at(-1) ?? from
        // Further looks for what the bound left over.
        const all = between(from, last)
        const further = Array.from({ length: Math.ceil(all.length / maxRunsPerLook) }, () => last)
        const runs = lookAt(timetable, 'backfill', from, [...looks, ...further])
        expect(runs.flat()).toEqual(all)
        for (const run of runs) expect(run.length).toBeLessThanOrEqual(maxRunsPerLook)
      }),
      { numRuns: 60 },
    )
  })

  it('with run-once run once a look, for the newest', () => {
    fc.assert(
      fc.property(hourly, instant, looksAfter, ({ timetable, between }, from, gaps) => {
        const looks = timesOf(from, gaps)
        let before = from
        const expected = looks.map((at) => {
          const passed = between(before, at)
          before = at
          return passed.slice(-1)
        })
        expect(lookAt(timetable, 'run-once', from, looks)).toEqual(expected)
      }),
      { numRuns: 60 },
    )
  })

  it('with skip run each that is not later than the grace, and no other', () => {
    fc.assert(
      fc.property(hourly, instant, looksAfter, ({ timetable, between }, from, gaps) => {
        const looks = timesOf(from, gaps)
        let before = from
        const expected = looks.map((at) => {
          const passed = between(Math.max(before, at - graceMs), at)
          before = at
          return passed
        })
        expect(lookAt(timetable, 'skip', from, looks)).toEqual(expected)
      }),
      { numRuns: 60 },
    )
  })

  it('of a year of seconds come one by one, or as one', () => {
    const secondly = { cron: '* * * * * *', tz: 'UTC' }
    const after = new Date(start)
    const now = new Date(start + 365 * 24 * hourMs + 500)
    const first = planRuns({ ...secondly, missed: 'backfill' }, after, now)
    expect(first.due).toHaveLength(maxRunsPerLook)
    expect(first.doneUntil).toEqual(new Date(start + maxRunsPerLook * 1_000))
    expect(planRuns({ ...secondly, missed: 'run-once' }, after, now).due).toEqual([
      new Date(now.getTime() - 500),
    ])
    // As many as lie within the grace, in as many looks as they take.
    const skipped = lookAt(secondly, 'skip', start, [now.getTime(), now.getTime(), now.getTime()])
    expect(skipped.map((run) => run.length)).toEqual([maxRunsPerLook, graceMs / 1_000 - maxRunsPerLook, 0])
  })
})

describe('where the clocks change', () => {
  const berlin = (cron: string, after: string, count: number) => {
    let at = new Date(after)
    return Array.from({ length: count }, () => {
      at = nextDue({ cron, tz: 'Europe/Berlin' }, at)
      return at.toISOString().slice(0, 16)
    })
  }

  it('a local time that does not exist runs an hour later, once', () => {
    expect(berlin('30 2 * * *', '2026-03-28T12:00:00Z', 2)).toEqual(['2026-03-29T01:30', '2026-03-30T00:30'])
    // What falls together with another time of the same expression is one.
    expect(berlin('0 2,3 * * *', '2026-03-28T12:00:00Z', 2)).toEqual(['2026-03-29T01:00', '2026-03-30T00:00'])
  })

  it('a local time that exists twice runs the first time; of every hour, each', () => {
    expect(berlin('30 2 * * *', '2026-10-24T12:00:00Z', 2)).toEqual(['2026-10-25T00:30', '2026-10-26T01:30'])
    expect(berlin('30 * * * *', '2026-10-24T23:45:00Z', 3)).toEqual([
      '2026-10-25T00:30',
      '2026-10-25T01:30',
      '2026-10-25T02:30',
    ])
  })

  it('the answer does not depend on when it is asked', () => {
    const crons = ['30 2 * * *', '*/30 1-3 * * *', '15 1,2,3 * * *', '59 1-2 * * *', '0 * * * *']
    const changes = ['2026-03-29T01:00:00Z', '2026-10-25T01:00:00Z'].map((text) => Date.parse(text))
    for (const cron of crons) {
      for (const change of changes) {
        const currentDate = new Date(change - 24 * hourMs)
        const iterator = CronExpressionParser.parse(cron, { tz: 'Europe/Berlin', currentDate })
        const times = iterator.take(60).map((time) => time.getTime())
        for (let at = change - 6 * hourMs; at < change + 6 * hourMs; at += 11 * minuteMs) {
          const next = times.find((time) => time > at)
          expect([
            cron,
            new Date(at),
            nextDue({ cron, tz: 'Europe/Berlin' }, new Date(at)).getTime(),
          ]).toEqual([cron, new Date(at), next])
        }
      }
    }
  })

  it('by half an hour, there are due times before and after all the same', () => {
    const lordHowe = { cron: '0 * * * *', tz: 'Australia/Lord_Howe' }
    for (const change of ['2026-04-04T15:00:00Z', '2026-10-03T15:30:00Z'].map((text) => Date.parse(text))) {
      for (let at = change - 6 * hourMs; at < change + 6 * hourMs; at += 17 * minuteMs) {
        const next = nextDue(lordHowe, new Date(at)).getTime()
        expect(next).toBeGreaterThan(at)
        expect(next).toBeLessThan(at + 3 * hourMs)
      }
    }
  })
})

describe('what is no schedule', () => {
  it.each(['0 * * * *', '*/5 * * * * *', '@daily', '0 0 * * THU', '0 0 29 2 *', '30 9 L * *'])(
    'takes %s',
    (cron) => {
      expect(cronProblem(cron)).toBeUndefined()
    },
  )

  it.each([
    ['', 'five fields'],
    ['* *', 'five fields'],
    ['0 0 0 0 * * *', 'five fields'],
    ['61 * * * *', '61'],
    ['a b c d e', 'Invalid'],
    ['0 0 31 2 *', 'day of month'],
    ['H * * * *', 'another number in each process'],
    ['0 H/2 * * *', 'another number in each process'],
    ['@reboot', 'no cron expression'],
  ])('refuses %j', (cron, why) => {
    expect(cronProblem(cron)).toContain(why)
  })

  it('knows time zones', () => {
    expect(timeZoneProblem('Europe/Berlin')).toBeUndefined()
    expect(timeZoneProblem('UTC')).toBeUndefined()
    for (const tz of ['Mars/Base', '', 'local', 'UTC+2'])
      expect(timeZoneProblem(tz)).toContain('no time zone')
  })
})
