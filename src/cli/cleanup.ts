import { Command } from 'commander'
import { cleanStaleTransactions } from '../jobs/clean-stale-transactions.ts'
import { expireIdempotencyKeys } from '../jobs/expire-idempotency-keys.ts'
import { print, withContext } from './open.ts'

export function cleanupCommand(): Command {
  const cleanup = new Command('cleanup').description('what the workers clean up every hour')
  cleanup
    .command('run')
    .description(
      'one deep recovery round, then remove what is older than its retention and expired idempotency keys',
    )
    .option('-c, --config <file>', 'the config file; default holdfast.config.ts or .js here')
    .option('--json', 'print the report as JSON, as the last line of standard output')
    .action(async (options: { config?: string; json?: boolean }) => {
      await withContext(options, async ({ ctx, signal }) => {
        const cleaned = await cleanStaleTransactions(ctx, ctx.config.retention, signal)
        const report = { ...cleaned, ...(await expireIdempotencyKeys(ctx, signal)) }
        const { committed, rolledBack, left, failed, ...removed } = report
        const text = `recovered: ${committed} committed, ${rolledBack} rolled back, ${left} left, ${failed} failed
removed: ${Object.entries(removed)
          .map(([what, n]) => `${n} ${what === 'keys' ? 'idempotency keys' : what}`)
          .join(', ')}
`
        print(text, options.json === true ? report : undefined)
        if (failed > 0) process.exitCode = 1
      })
    })
  return cleanup
}
