import { userInfo } from 'node:os'
import { Command, InvalidArgumentError } from 'commander'

/** What every command of a group takes. */
export type Shared = { config?: string; json?: boolean }

export function command(name: string, description: string): Command {
  return new Command(name)
    .description(description)
    .option('-c, --config <file>', 'the config file; default holdfast.config.ts or .js here')
    .option('--json', 'print the result as JSON, as the last line of standard output')
}

export function atLeastOne(text: string): number {
  const value = Number(text)
  if (!Number.isSafeInteger(value) || value < 1) throw new InvalidArgumentError('a whole number, 1 or more')
  return value
}

/** Some containers run under a user that has no name. */
export function operatingSystemUser(): string {
  try {
    return userInfo().username
  } catch {
    return `uid ${process.getuid?.() ?? 'unknown'}`
  }
}
