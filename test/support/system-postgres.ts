import { execFile } from 'node:child_process'
import { mkdtemp, readdir, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { type Account, chooseAccount } from '../../src/db/embedded/account.ts'
import { runBinary } from '../../src/db/embedded/run-binary.ts'
import { freePort } from './free-port.ts'

/**
 * A private server of the PostgreSQL that the system has, for what the embedded one comes without: pg_dump, pg_restore and
 * pg_upgrade, which work only on servers of their own version.
 */
export type SystemPostgres = {
  url: string
  data: string
  start(): Promise<void>
  stop(): Promise<void>
  remove(): Promise<void>
}

/** The folder of the newest such programs; undefined where there are none. */
export async function findPrograms(): Promise<string | undefined> {
  const root = '/usr/lib/postgresql'
  const folders: string[] = await readdir(root).catch(() => [])
  const versions = folders.toSorted((a, b) => Number(b) - Number(a))
  for (const version of versions) {
    const bin = join(root, version, 'bin')
    const found: string[] = await readdir(bin).catch(() => [])
    if (['initdb', 'pg_ctl', 'pg_dump', 'pg_restore', 'pg_upgrade'].every((name) => found.includes(name)))
      return bin
  }
  const text = `no PostgreSQL server programs below ${root}: tests of dump and restore are left out (Debian: apt-get install postgresql)`
  if (process.env.CI === 'true') throw new Error(`${text}; with CI=true nothing may be left out`)
  console.warn(`\n*** ${text} ***\n`)
  return undefined
}

export async function createCluster(bin: string): Promise<SystemPostgres> {
  const dir = await mkdtemp(join(tmpdir(), 'holdfast-system-pg-'))
  const data = join(dir, 'data')
  const account = await chooseAccount(dir, data, join(bin, 'postgres'))
  const run = (program: string, args: readonly string[]) => runProgram(account, bin, program, args, dir)
  await run('initdb', ['-D', 'data', '-U', 'postgres', '-A', 'trust', '-E', 'UTF8', '--locale=C', '-N'])
  const port = await freePort()
  const settings = {
    port,
    listen_addresses: '127.0.0.1',
    unix_socket_directories: '',
    max_prepared_transactions: 20,
    fsync: 'off',
  }
  const options = Object.entries(settings).map(([name, value]) => `-c ${name}='${value}'`)
  const stop = () => run('pg_ctl', ['-D', 'data', '-w', '-m', 'fast', 'stop'])
  return {
    url: `postgres://postgres@127.0.0.1:${port}/postgres`,
    data,
    start: () => run('pg_ctl', ['-D', 'data', '-w', '-l', 'log', '-o', options.join(' '), 'start']),
    stop,
    async remove() {
      await stop().catch(() => undefined)
      await rm(dir, { recursive: true, force: true })
    },
  }
}

async function runProgram(
  account: Account,
  bin: string,
  program: string,
  args: readonly string[],
  cwd: string,
): Promise<void> {
  const { ok, output } = await runBinary(account, join(bin, program), args, { cwd, timeoutMs: 120_000 })
  if (!ok) throw new Error(`${program}: ${output}`)
}

/** Dumps one database and restores it into another, which exists and is empty. */
export async function dumpAndRestore(bin: string, from: string, to: string): Promise<void> {
  const dir = await mkdtemp(join(tmpdir(), 'holdfast-dump-'))
  const run = promisify(execFile)
  try {
    await run(join(bin, 'pg_dump'), ['-Fc', '-f', join(dir, 'dump'), '-d', from])
    await run(join(bin, 'pg_restore'), ['--exit-on-error', '-d', to, join(dir, 'dump')])
  } finally {
    await rm(dir, { recursive: true, force: true })
  }
}

/** Moves a cluster into a new one of the same version, as an upgrade does. Both are stopped. */
export async function upgrade(bin: string, from: SystemPostgres, to: SystemPostgres): Promise<void> {
  const dir = await mkdtemp(join(tmpdir(), 'hf-up-'))
  try {
    const account = await chooseAccount(dir, from.data, join(bin, 'postgres'))
    const ports = ['-p', String(await freePort()), '-P', String(await freePort())]
    const sides = ['-b', bin, '-B', bin, '-d', from.data, '-D', to.data]
    const options = ['-o', '-c max_prepared_transactions=0', '-O', '-c max_prepared_transactions=0']
    await runProgram(
      account,
      bin,
      'pg_upgrade',
      [...sides, ...ports, '-U', 'postgres', '-s', dir, ...options],
      dir,
    )
  } finally {
    await rm(dir, { recursive: true, force: true })
  }
}
