import { userInfo } from 'node:os'
import { Command, InvalidArgumentError } from 'commander'
import type { Json } from '../db/json.ts'

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

export function wholeNumber(text: string): number {
  const value = Number(text)
  if (text.trim() === '' || !Number.isSafeInteger(value) || value < 0)
    throw new InvalidArgumentError('a whole number, 0 or more')
  return value
}

export function parsedJson(text: string): Json {
  try {
    return JSON.parse(text) as Json
  } catch {
    throw new InvalidArgumentError('JSON, as in \'{"year":2026}\'')
  }
}

/** Some containers run under a user that has no name. */
export function operatingSystemUser(): string {
  try {
    return userInfo().username
  } catch {
    return `uid ${process.getuid?.() ?? 'unknown'}`
  }
}
