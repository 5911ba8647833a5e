import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { afterAll, describe, expect, inject, it } from 'vitest'
import { declareSchedule } from '../../src/db/schedules.ts'
import { newDatabases, openContext } from '../support/database.ts'
import { HoldfastProcess } from '../support/process.ts'

const urls = await newDatabases()
const ctx = await openContext(urls)
const { sql } = ctx.databases.primary

const cwd = await mkdtemp(join(tmpdir(), 'holdfast-schedule-'))
afterAll(() => rm(cwd, { recursive: true, force: true }))
const library = pathToFileURL(join(inject('compiled'), 'src/index.js')).href
const writeConfig = (schedules: unknown) =>
  writeFile(
    join(cwd, 'holdfast.config.mjs'),
    `import { defineBatch, defineJob, keyset } from ${JSON.stringify(library)}
     const copy = defineBatch({ name: 'copy', source: keyset({ table: 'source', key: ['id'] }), async process() {} })
     const greet = defineJob({ name: 'greet', stage: () => null })
     export default { databases: ${JSON.stringify(urls)}, batches: [copy], jobs: [greet], schedules: ${JSON.stringify(schedules)} }`,
  )
const holdfast = (...args: string[]) => new HoldfastProcess(['schedule', ...args], {}, cwd).ended

describe('holdfast schedule', () => {
  it('explains itself', async () => {
    expect(await holdfast('--help')).toMatchObject({ code: 0, stdout: expect.stringContaining('list') })
    expect(await holdfast('list', '--help')).toMatchObject({
      code: 0,
      stdout: expect.stringContaining('--json'),
    })
  })

  it('lists what workers declared, and what the config says that none has declared yet', async () => {
    await writeConfig([
      { batch: 'copy', cron: '0 3 * * *', tz: 'Europe/Berlin', missed: 'skip', name: 'b-new' },
      { job: 'greet', input: { name: 'Ada' }, cron: '0 4 * * *', name: 'c-job' },
    ])
    const declared = {
      name: 'a-declared',
      cron: '30 * * * *',
      tz: 'UTC',
      missed: 'backfill',
      target: { batch: 'copy', params: {} },
    } as const
    await declareSchedule(sql, declared, new Date('2026-05-01T00:00:00Z'))
    const text = await holdfast('list')
    expect(text).toMatchObject({ code: 0, stdout: '' })
    expect(text.stderr).toMatch(
      /a-declared +batch copy +30 \* \* \* \* +UTC +backfill +- +- +2026-05-01T00:30:00\.000Z/,
    )
    expect(text.stderr).toMatch(/b-new +batch copy +0 3 \* \* \* +Europe\/Berlin +skip +- +-/)
    expect(text.stderr).toMatch(/c-job +job greet +0 4 \* \* \* +UTC +run-once/)
    const json = await holdfast('list', '--json')
    expect(json.code).toBe(0)
    expect(json.stdout.trimEnd().split('\n')).toHaveLength(1)
    expect(JSON.parse(json.stdout)).toEqual([
      {
        name: 'a-declared',
        enqueues: { kind: 'batch', name: 'copy' },
        cron: '30 * * * *',
        tz: 'UTC',
        missed: 'backfill',
        lastDueAt: null,
        lastJobId: null,
        nextDueAt: '2026-05-01T00:30:00.000Z',
      },
      expect.objectContaining({ name: 'b-new', lastDueAt: null }),
      expect.objectContaining({ name: 'c-job', enqueues: { kind: 'job', name: 'greet' } }),
    ])
  })

  it('refuses a config whose schedules are wrong', async () => {
    await writeConfig([
      { batch: 'cpoy', cron: '0 3 * *' },
      { job: 'copy', cron: '0 3 * * *' },
    ])
    const ended = await holdfast('list')
    expect(ended).toMatchObject({ code: 2, stderr: expect.stringContaining('config.schedules.0.cron') })
    expect(ended.stderr).toContain('no batch named cpoy')
    expect(ended.stderr).toContain('config.schedules.1.job: no job named copy is configured; known: greet')
  })
})
