import { Command } from 'commander'
import { Databases } from '../db/databases.ts'
import { resolveConfig } from '../workers/config.ts'
import { embeddedUrls, migrateAll } from '../workers/context.ts'
import { loadHoldfastConfig } from './load-config.ts'

export function migrateCommand(): Command {
  return new Command('migrate')
    .description('bring the schema of every configured database up to date')
    .option('-c, --config <file>', 'the config file; default holdfast.config.ts or .js here')
    .option(
      '--roles',
      'create the database roles too (needs CREATEROLE): holdfast_app, _operator, _reader, _owner',
    )
    .option('--json', 'print the result as JSON on standard output')
    .action(async (options: { config?: string; roles?: boolean; json?: boolean }) => {
      const config = resolveConfig(await loadHoldfastConfig(options.config), process.env)
      const releases: (() => Promise<void>)[] = []
      try {
        const databases = new Databases(
          await embeddedUrls(config.databases, (server) => releases.push(() => server.release())),
        )
        releases.unshift(() => databases.end())
        const result = await migrateAll(databases, config, { roles: options.roles === true })
        for (const migration of result.applied) process.stderr.write(`applied ${migration}\n`)
        if (result.applied.length === 0) process.stderr.write('the schema is up to date\n')
        if (options.roles === true) process.stderr.write('the roles are there, with their rights\n')
        if (options.json === true) process.stdout.write(`${JSON.stringify(result)}\n`)
      } finally {
        for (const release of releases) await release()
      }
    })
}
