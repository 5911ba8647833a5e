import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, inject, it, onTestFinished } from 'vitest'
import { newDatabase } from '../support/database.ts'
import { HoldfastProcess } from '../support/process.ts'

async function emptyFolder(): Promise<string> {
  const dir = await mkdtemp(join(tmpdir(), 'holdfast-cli-'))
  onTestFinished(() => rm(dir, { recursive: true, force: true }))
  return dir
}

describe('holdfast', () => {
  it('explains itself and each command', async () => {
    const help = await new HoldfastProcess(['--help']).ended
    expect(help).toMatchObject({ code: 0, stderr: '' })
    for (const command of ['demo', 'migrate', 'worker']) {
      expect(help.stdout).toContain(command)
      const own = await new HoldfastProcess([command, '--help']).ended
      expect(own.code).toBe(0)
      expect(own.stdout).toContain('Options:')
    }
  })

  it.each([[['nonsense']], [['demo', '--rows', 'many']], [['worker', '--no-such-option']]])(
    'answers wrong use (%j) with exit code 2 and what would be right',
    async (args) => {
      const ended = await new HoldfastProcess(args).ended
      expect(ended.code).toBe(2)
      expect(ended.stdout).toBe('')
      expect(ended.stderr).toMatch(/error: |Usage:/)
    },
  )

  it('says which config file is missing, and what is wrong in one', async () => {
    const cwd = await emptyFolder()
    const missing = await new HoldfastProcess(['worker', '-c', 'nowhere.config.ts'], {}, cwd).ended
    expect(missing).toMatchObject({ code: 2, stderr: expect.stringContaining('nowhere.config') })
    await writeFile(
      join(cwd, 'holdfast.config.mjs'),
      `export default { databases: { primary: 'mysql://x' } }`,
    )
    const wrong = await new HoldfastProcess(['worker'], {}, cwd).ended
    expect(wrong).toMatchObject({ code: 2, stderr: expect.stringContaining('HOLDFAST_INVALID_CONFIG') })
  })

  it('migrates, and says so once', async () => {
    const DATABASE_URL = await newDatabase()
    const cwd = await emptyFolder()
    const first = await new HoldfastProcess(['migrate', '--json'], { DATABASE_URL }, cwd).ended
    expect(first.code).toBe(0)
    const { applied } = JSON.parse(first.stdout) as { applied: string[] }
    expect(applied[0]).toBe('primary: 0001-participant')
    expect(first.stderr).toContain('applied primary: 0001-participant')
    const second = await new HoldfastProcess(['migrate', '--json'], { DATABASE_URL }, cwd).ended
    expect(second).toMatchObject({
      code: 0,
      stdout: '{"applied":[]}\n',
      stderr: 'the schema is up to date\n',
    })
  })

  it('does not work on a database that was not migrated, and says how', async () => {
    const ended = await new HoldfastProcess(
      ['worker'],
      { DATABASE_URL: await newDatabase() },
      await emptyFolder(),
    ).ended
    expect(ended).toMatchObject({
      code: 1,
      stderr: expect.stringMatching(/HOLDFAST_SCHEMA_OUTDATED.*holdfast migrate/),
    })
  })
})

const redis = inject('redis')
const backends = [
  ['PostgreSQL', {}] as const,
  ...(redis === undefined ? [] : [['Redis', { REDIS_URL: redis }] as const]),
]

describe.each(backends)('holdfast demo with its queues on %s', (_name, queues) => {
  it('loses and doubles nothing while workers are killed, and leaves the server as it was', async () => {
    const server = inject('postgres').west
    const args = ['demo', '--once', '--json', '--rows', '12000', '--kills', '2']
    const demo = new HoldfastProcess(args, { DATABASE_URL: server, ...queues }, await emptyFolder())
    const ended = await demo.ended
    expect(ended.stderr).toContain('2 workers killed')
    const report = JSON.parse(ended.stdout.trimEnd().split('\n').at(-1) ?? '') as Record<string, unknown>
    expect(report).toMatchObject({
      rows: { expected: 12_000, imported: 12_000, missing: 0, doubled: 0 },
      events: { expected: 12_000, delivered: 12_000, missing: 0, doubled: 0 },
      kills: 2,
      inDoubt: { left: 0 },
      seconds: expect.any(Number),
    })
    expect(ended.code).toBe(0)
    const postgres = (await import('postgres')).default
    const sql = postgres(server, { max: 1 })
    expect(await sql`select datname from pg_database where datname like 'holdfast_demo_%'`).toEqual([])
    await sql.end()
  })
})
