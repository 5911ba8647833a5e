import { Command, InvalidArgumentError } from 'commander'
import { InvalidConfigError } from '../db/errors.ts'
import {
  discardParked,
  findDead,
  forgetSink,
  type OutboxHand,
  type ReplayFrom,
  rebaseOutbox,
  redriveParked,
  replayOutbox,
} from '../db/outbox-actions.ts'
import { listParked, readOutboxStats } from '../db/outbox-stats.ts'
import type { Context } from '../workers/context.ts'
import { atLeastOne, command, operatingSystemUser, type Shared } from './command.ts'
import { print, withContext } from './open.ts'
import { describeParked, describeStats, describeTouched } from './outbox-print.ts'

export function outboxCommand(): Command {
  return new Command('outbox')
    .description('look at the outbox, and do by hand what the relay does not do by itself')
    .addCommand(statsCommand())
    .addCommand(deadCommand())
    .addCommand(touchCommand('redrive'))
    .addCommand(touchCommand('discard'))
    .addCommand(replayCommand())
    .addCommand(rebaseCommand())
    .addCommand(forgetCommand())
}

/** All of it is in the primary database; no other one has to answer. */
function withPrimary(options: Shared, run: (ctx: Context) => Promise<void>): Promise<void> {
  return withContext({ ...options, onlyLooks: true }, ({ ctx }) => run(ctx))
}

function statsCommand(): Command {
  return command('stats', 'how far each sink is, and what keeps it').action(async (options: Shared) => {
    await withPrimary(options, async (ctx) => {
      const stats = await readOutboxStats(ctx.databases.primary.sql)
      print(describeStats(stats, Date.now()), options.json === true ? stats : undefined)
    })
  })
}

function deadCommand(): Command {
  return command('dead', 'what sinks rejected and was given up; never the data of an event')
    .option('--sink <sink>', 'only of this sink')
    .option('--parked', 'also what is tried again, and what waits behind another event of its key')
    .option('--limit <n>', 'at most so many', atLeastOne, 100)
    .action(async (options: Shared & { sink?: string; parked?: boolean; limit: number }) => {
      const { sink, parked = false, limit } = options
      await withPrimary(options, async (ctx) => {
        const found = await listParked(ctx.databases.primary.sql, {
          ...(sink === undefined ? {} : { sink }),
          ...(parked ? {} : { dead: true }),
          limit: limit + 1,
        })
        const list = { events: found.slice(0, limit), more: found.length > limit }
        print(describeParked(list, Date.now()), options.json === true ? list : undefined)
      })
    })
}

type Hand = Shared & { reason: string; who: string }

function byHand(name: string, description: string): Command {
  return command(name, description)
    .argument('<sink>')
    .requiredOption('--reason <text>', 'why; goes into the audit')
    .option('--who <name>', 'who; goes into the audit beside the database login', operatingSystemUser())
}

function handOf({ reason: why, who }: Hand): OutboxHand {
  if (why.trim() === '') throw new InvalidConfigError(['--reason is empty'])
  return { who, why }
}

type Touch = Hand & { event?: string[]; all?: boolean; dryRun?: boolean }

function touchCommand(verb: 'redrive' | 'discard'): Command {
  const touch =
    verb === 'redrive'
      ? byHand(verb, 'try dead events again, in their order; without --event all of the sink')
      : byHand(verb, 'drop dead events for good; what waited behind them goes on').option(
          '--all',
          'all that are dead of this sink',
        )
  return touch
    .option('--event <id...>', 'only these events', eventId)
    .option('--dry-run', 'only say what would happen')
    .action(async (sink: string, options: Touch) => {
      const { event: events, all = false, dryRun = false } = options
      const hand = handOf(options)
      if (verb === 'discard' && all === (events !== undefined))
        throw new InvalidConfigError(['discard takes either --event or --all'])
      const only = events === undefined ? {} : { events }
      await withPrimary(options, async ({ databases: { primary } }) => {
        const act = verb === 'redrive' ? redriveParked : discardParked
        const result = dryRun
          ? { sink, dryRun, events: await findDead(primary.sql, sink, events) }
          : { sink, dryRun, count: await act(primary, sink, { ...hand, ...only }) }
        print(describeTouched(verb, result, events?.length), options.json === true ? result : undefined)
        // Something was asked for that could not be done.
        if ((result.count ?? result.events?.length ?? 0) < (events?.length ?? 0)) process.exitCode = 1
      })
    })
}

function replayCommand(): Command {
  return byHand('replay', 'send a sink again what it has had; each shard starts at the end of its list')
    .option('--since <time>', 'what became visible after this time, ISO 8601 with its zone', instant)
    .option(
      '--from <event>',
      'what comes in the outbox from this event on',
      (text: string) => eventId(text)[0],
    )
    .action(async (sink: string, options: Hand & { since?: Date; from?: string }) => {
      const hand = handOf(options)
      const from = startOf(options)
      await withPrimary(options, async (ctx) => {
        await replayOutbox(ctx.databases.primary, sink, from, hand)
        const start = 'since' in from ? from.since.toISOString() : from.event
        print(
          `${sink}: a replay from ${start} waits; \`holdfast outbox stats\` shows when it runs\n`,
          options.json === true ? { sink, ...from } : undefined,
        )
      })
    })
}

function startOf({ since, from }: { since?: Date; from?: string }): ReplayFrom {
  if (since !== undefined && from === undefined) return { since }
  if (from !== undefined && since === undefined) return { event: from }
  throw new InvalidConfigError(['replay takes either --since or --from'])
}

function rebaseCommand(): Command {
  const description =
    'after the primary was restored from a dump: transaction numbers began anew, so the cursors of the sink say nothing about new events, and stop. Each then goes once, by id, through what it had not passed, and on from there. What was published after the dump was made, and what came of it, the database does not know any more'
  return byHand('rebase', description)
    .summary('let the cursors of a sink go on after the primary was restored from a dump')
    .action(async (sink: string, options: Hand) => {
      const hand = handOf(options)
      await withPrimary(options, async (ctx) => {
        const shards = await rebaseOutbox(ctx.databases.primary, sink, hand)
        print(
          `rebased ${cursors(sink, shards)}: each goes by id through what it had not passed. Run it for every sink\n`,
          options.json === true ? { sink, shards } : undefined,
        )
      })
    })
}

function forgetCommand(): Command {
  return byHand(
    'forget',
    'forget a sink that is no longer configured; what it has not taken is lost to it',
  ).action(async (sink: string, options: Hand) => {
    const hand = handOf(options)
    await withPrimary(options, async (ctx) => {
      if (ctx.config.sinks.has(sink))
        throw new InvalidConfigError([
          `the config still has the sink ${sink}, and a worker would begin it anew; remove it there and restart the workers first`,
        ])
      const shards = await forgetSink(ctx.databases.primary, sink, hand)
      print(`forgot ${cursors(sink, shards)}\n`, options.json === true ? { sink, shards } : undefined)
    })
  })
}

function cursors(sink: string, shards: readonly number[]): string {
  return shards.map((shard) => `${sink}/${shard}`).join(', ')
}

function eventId(text: string, before: string[] = []): string[] {
  if (!/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i.test(text))
    throw new InvalidArgumentError('the id of an event, a UUID')
  return [...before, text.toLowerCase()]
}

/** A time of day without its zone is another one on each machine. */
function instant(text: string): Date {
  const at = new Date(text)
  if (Number.isNaN(at.getTime())) throw new InvalidArgumentError('a time like 2030-01-31T12:00:00Z')
  if (!/^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}(:\d{2}(\.\d+)?)?(Z|[+-]\d{2}:?\d{2})$/i.test(text))
    throw new InvalidArgumentError(
      'it lacks its date, its time of day or its zone; end it with Z for UTC, or with an offset such as +02:00',
    )
  if (at.getTime() > Date.now()) throw new InvalidArgumentError('it lies in the future')
  return at
}
