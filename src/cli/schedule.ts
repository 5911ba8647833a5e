import { Command, type Command as CommandType } from 'commander'
import { Schedules, type ScheduleView } from '../workers/schedules.ts'
import { command, type Shared } from './command.ts'
import { print, withContext } from './open.ts'
import { age, section } from './table.ts'

export function scheduleCommand(): CommandType {
  return new Command('schedule').description('what is enqueued by the clock').addCommand(listCommand())
}

function listCommand(): CommandType {
  return command('list', 'each schedule, what it enqueued last, and when it is due next').action(
    async (options: Shared) => {
      await withContext({ ...options, onlyLooks: true }, async ({ ctx }) => {
        const views = await new Schedules(ctx).list()
        print(describe(views, Date.now()), options.json === true ? views : undefined)
      })
    },
  )
}

function describe(views: readonly ScheduleView[], now: number): string {
  if (views.length === 0) return 'no schedule\n'
  return section(
    'schedules',
    ['schedule', 'enqueues', 'cron', 'time zone', 'missed', 'last due', 'its job', 'next due', ''],
    views.map((view) => [
      view.name,
      `${view.enqueues.kind} ${view.enqueues.name}`,
      view.cron,
      view.tz,
      view.missed,
      view.lastDueAt?.toISOString() ?? '-',
      view.lastJobId ?? '-',
      view.nextDueAt.toISOString(),
      distance(view.nextDueAt.getTime() - now),
    ]),
  )
}

function distance(ms: number): string {
  return ms < 0 ? `${age(-ms / 1_000)} late` : `in ${age(ms / 1_000)}`
}
