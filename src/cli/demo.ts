import { mkdirSync } from 'node:fs'
import { resolve } from 'node:path'
import { Command, InvalidArgumentError } from 'commander'
import { type DemoOptions, type DemoReport, runDemo } from './demo/run.ts'

export function demoCommand(): Command {
  return new Command('demo')
    .description(
      'import the real flights with workers that are killed on the way, and prove that nothing is lost or doubled',
    )
    .option('--once', 'exit after the report, with 0 only if nothing is missing, doubled or left over')
    .option('--json', 'print the report as JSON, as the last line of standard output')
    .option('--rows <n>', 'import only the first n flights', wholeNumber)
    .option('--kills <n>', 'how many workers to kill', wholeNumber, 6)
    .addHelpText(
      'after',
      `
Without DATABASE_URL it uses the embedded PostgreSQL in .holdfast/; with it, it creates databases holdfast_demo_* there
(the login needs CREATEDB, the server max_prepared_transactions >= 50) and drops them at the end. With REDIS_URL the
queues are on Redis, without it on PostgreSQL.`,
    )
    .action(async (options: { once?: boolean; json?: boolean; rows?: number; kills: number }) => {
      const folder = resolve('.holdfast')
      mkdirSync(folder, { recursive: true, mode: 0o700 })
      const demo: DemoOptions = {
        rows: options.rows,
        kills: options.kills,
        stay: options.once !== true,
        folder,
        databaseUrl: process.env.DATABASE_URL === '' ? undefined : process.env.DATABASE_URL,
        redis: process.env.REDIS_URL === '' ? undefined : process.env.REDIS_URL,
      }
      const report = await runDemo(demo, (r) => {
        process.stderr.write(describe(r))
        if (options.json === true) process.stdout.write(`${JSON.stringify(r)}\n`)
      })
      const { rows, events, inDoubt } = report
      const wrong = rows.missing + rows.doubled + events.missing + events.doubled + inDoubt.left
      process.exitCode = wrong === 0 ? 0 : 1
    })
}

function wholeNumber(text: string): number {
  const value = Number(text)
  if (!Number.isSafeInteger(value) || value < 0) throw new InvalidArgumentError('a whole number, 0 or more')
  return value
}

function describe({ rows, events, kills, inDoubt, seconds }: DemoReport): string {
  const n = (value: number) => value.toLocaleString('en-US').padStart(9)
  return `
             expected      there    missing    doubled
  rows    ${n(rows.expected)}  ${n(rows.imported)}  ${n(rows.missing)}  ${n(rows.doubled)}
  events  ${n(events.expected)}  ${n(events.delivered)}  ${n(events.missing)}  ${n(events.doubled)}

  ${kills} workers killed, ${inDoubt.resolved} transactions found in doubt and resolved, ${inDoubt.left} left over, ${seconds} s
`
}
