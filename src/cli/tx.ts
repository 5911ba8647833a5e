import { Command, Option } from 'commander'
import { findByName } from '../db/distributed-transactions.ts'
import { InvalidConfigError } from '../db/errors.ts'
import { compensatedByHand, confirmByHand, finishByHand, recoverByHand } from '../jobs/by-hand.ts'
import { inspect, listOpen, type ShownStatus, shownStatus } from '../jobs/inspect.ts'
import { recover } from '../jobs/recovery.ts'
import { atLeastOne, command, operatingSystemUser, type Shared } from './command.ts'
import { print, withContext } from './open.ts'
import { advise, situationOf } from './tx-advice.ts'
import { describeInspection, describeList } from './tx-print.ts'

const statuses: readonly ShownStatus[] = [
  'started',
  'pending',
  'committing',
  'committed',
  'rolling_back',
  'rolled_back',
  'cleaned_up',
  'requires_manual_intervention',
]

export function txCommand(): Command {
  return new Command('tx')
    .description('look at distributed transactions, and finish by hand what needs a hand')
    .addCommand(listCommand())
    .addCommand(showCommand())
    .addCommand(finishCommand('commit'))
    .addCommand(finishCommand('rollback'))
    .addCommand(recoverCommand())
}

function listCommand(): Command {
  return command('list', 'what is not at its end or needs a hand, and what else is prepared on the servers')
    .addOption(new Option('--status <status>', 'only those of this status').choices(statuses))
    .option('--limit <n>', 'at most so many', atLeastOne, 100)
    .action(async (options: Shared & { status?: ShownStatus; limit: number }) => {
      await withContext({ ...options, onlyLooks: true }, async ({ ctx, leftOut }) => {
        const { limit, status } = options
        const work = await listOpen(ctx, status === undefined ? { limit } : { limit, status })
        const all = { ...work, unavailable: { ...work.unavailable, ...leftOut } }
        print(describeList(all), options.json === true ? all : undefined)
      })
    })
}

function showCommand(): Command {
  return command('show', 'everything about one: evidence, locks, who waits for it, its audit, what to do')
    .argument('<name>')
    .action(async (name: string, options: Shared) => {
      await withContext({ ...options, onlyLooks: true }, async ({ ctx }) => {
        const inspection = await inspect(ctx, name)
        const advice = advise(situationOf(inspection))
        print(
          describeInspection(inspection, advice),
          options.json === true ? { ...inspection, advice } : undefined,
        )
      })
    })
}

type Hand = Shared & { reason: string; who: string; dryRun?: boolean }

function finishCommand(verb: 'commit' | 'rollback'): Command {
  const description =
    verb === 'commit'
      ? 'commit by hand what is prepared everywhere; never against a decision, a marker or a vote'
      : 'roll back by hand what nobody decided; never against a decision or a marker'
  return command(verb, description)
    .argument('<name>')
    .requiredOption('--reason <text>', 'why; goes into the audit')
    .option('--who <name>', 'who; goes into the audit beside the database login', operatingSystemUser())
    .option('--dry-run', 'only say what would happen')
    .action(async (name: string, options: Hand) => {
      const { reason: why, who, dryRun = false } = options
      if (why.trim() === '') throw new InvalidConfigError(['--reason is empty'])
      const decision = verb === 'commit' ? 'commit' : 'abort'
      await withContext(options, async ({ ctx }) => {
        const result = await finishByHand(ctx, name, { decision, who, why, dryRun })
        const quarantine = result.quarantine === null ? '' : `: ${result.quarantine}`
        const state = dryRun ? `${result.state}: ${decision}; nothing was changed` : result.state
        print(`${name}: ${state}${quarantine}\n`, options.json === true ? result : undefined)
        // What is decided is done, here or by recovery; what is set aside is not.
        if (result.quarantine !== null && !dryRun) process.exitCode = 1
      })
    })
}

type Recover = Shared & { confirmTimeline?: string; compensated?: boolean; reason?: string; who: string }

function recoverCommand(): Command {
  return command('recover', 'one deep recovery round; with a name, after its quarantine is released')
    .argument('[name]')
    .option('--reason <text>', 'why; needed with a name, goes into the audit')
    .option('--who <name>', 'who; goes into the audit beside the database login', operatingSystemUser())
    .option(
      '--compensated',
      'what its compensation was to undo, and was given up, is undone by hand: it is not tried again',
    )
    .option(
      '--confirm-timeline <participant>',
      'its server was promoted or restored, and may be recovered on',
    )
    .action(async (name: string | undefined, options: Recover) => {
      const { reason = '', who, confirmTimeline: participant, compensated = false } = options
      if (name !== undefined && reason.trim() === '')
        throw new InvalidConfigError(['releasing a quarantine needs --reason'])
      if (name === undefined && compensated)
        throw new InvalidConfigError(['--compensated needs the name of a transaction'])
      await withContext(options, async ({ ctx, signal }) => {
        const by = reason === '' ? who : `${who}: ${reason}`
        const confirmed = participant === undefined ? null : await confirmByHand(ctx, participant, by)
        const takeOff = compensated ? compensatedByHand : recoverByHand
        const released = name === undefined ? null : await takeOff(ctx, name, who, reason)
        const report = await recover(ctx, { signal, deep: true })
        const row = name === undefined ? undefined : await findByName(ctx.databases.primary.sql, name)
        const transaction = row
          ? { name: row.name, status: shownStatus(row), recorded: row.status, quarantine: row.quarantine }
          : null
        const text = [
          confirmed && `${participant ?? ''}: timeline ${confirmed.timeline} confirmed`,
          released === null ? null : `${name}: ${saidOf(released, compensated)}`,
          `recovered: ${report.committed} committed, ${report.rolledBack} rolled back, ${report.left} left, ${report.failed} failed`,
          transaction && `${transaction.name}: ${transaction.status}`,
          transaction?.quarantine,
        ].filter((line) => typeof line === 'string')
        print(
          `${text.join('\n')}\n`,
          options.json === true ? { confirmed, released, report, transaction } : undefined,
        )
        if (report.failed > 0 || (row && row.quarantine !== null)) process.exitCode = 1
      })
    })
}

function saidOf(released: boolean, compensated: boolean): string {
  if (compensated) return released ? 'recorded as compensated' : 'has no compensation that was given up'
  return released ? 'quarantine released' : 'was not quarantined'
}
