import { InvalidConfigError } from '../db/errors.ts'
import { checkTransactionName, type GidParts, nameInGid } from '../db/transaction-name.ts'

/**
 * The name under which the pages of a cursor are staged: `outbox:<sink>:<shard>`, and `:<target>` where the sink commits
 * into another participant. The attempt makes each gid unique. Recovery reads cursor and target from it, so it has to
 * stand in the gid as it is.
 */
export function pageName(sink: string, shard: number, target?: string): string {
  const name = target === undefined ? `outbox:${sink}:${shard}` : `outbox:${sink}:${shard}:${target}`
  checkTransactionName(name)
  if (nameInGid(name) !== name) {
    throw new InvalidConfigError([
      `sink ${sink} and its database ${target} have names too long to go together; shorten one`,
    ])
  }
  return name
}

export function isPageOf({ policy, name }: GidParts, sink: string, shard: number): boolean {
  const own = `outbox:${sink}:${shard}`
  return policy === 'presumed-abort' && (name === own || name.startsWith(`${own}:`))
}

/** The participants to ask about a page in doubt; undefined when the name is not a page's. */
export function targetsOf({ policy, name }: GidParts): string[] | undefined {
  const match = /^outbox:[a-z0-9-]+:\d+(?::([a-z][a-z0-9_-]*))?$/.exec(name)
  if (!match || policy !== 'presumed-abort') return undefined
  return match[1] === undefined ? [] : [match[1]]
}
