import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { afterAll, describe, expect, inject, it } from 'vitest'
import { markScheduled } from '../../src/db/jobs.ts'
import type { JobDefinition } from '../../src/jobs/job-definition.ts'
import { newDatabases, openContext } from '../support/database.ts'
import { JobProcess } from '../support/jobs.ts'
import { type Ended, HoldfastProcess } from '../support/process.ts'

const urls = await newDatabases()
const ctx = await openContext(urls)
await ctx.databases.primary.sql`create table mended ()`

const cwd = await mkdtemp(join(tmpdir(), 'holdfast-job-'))
afterAll(() => rm(cwd, { recursive: true, force: true }))
const library = pathToFileURL(join(inject('compiled'), 'src/index.js')).href
await writeFile(
  join(cwd, 'holdfast.config.mjs'),
  `import { defineJob } from ${JSON.stringify(library)}
   const charge = defineJob({
     name: 'charge', retry: { attempts: 1 },
     async stage({ tx }) {
       if ((await tx\`select from mended\`).length === 0) throw new Error('card refused')
     },
   })
   export default { databases: ${JSON.stringify(urls)}, jobs: [charge] }`,
)
const { default: config } = (await import(pathToFileURL(join(cwd, 'holdfast.config.mjs')).href)) as {
  default: { jobs: JobDefinition[] }
}
const worker = new JobProcess(ctx, config.jobs)

const holdfast = (...args: string[]) => new HoldfastProcess(['job', ...args], {}, cwd).ended
function read({ stdout }: Ended): unknown {
  expect(stdout.trimEnd().split('\n')).toHaveLength(1)
  return JSON.parse(stdout)
}
async function json(...args: string[]): Promise<unknown> {
  const ended = await holdfast(...args, '--json')
  expect(ended).toMatchObject({ code: 0 })
  return read(ended)
}

describe('holdfast job', () => {
  it('explains each of its commands', async () => {
    const commands = ['list', 'show', 'enqueue', 'retry', 'cancel']
    const help = await holdfast('--help')
    expect(help).toMatchObject({ code: 0, stderr: '' })
    for (const command of commands) {
      expect(help.stdout).toContain(command)
      expect(await holdfast(command, '--help')).toMatchObject({
        code: 0,
        stdout: expect.stringContaining('--json'),
      })
    }
  })

  it('says who runs a job that is due', async () => {
    const [row] = await ctx.databases.primary.sql<
      { id: string }[]
    >`select holdfast.enqueue('unknown', '{}') as id`
    const shown = await holdfast('show', row?.id ?? '')
    expect(shown).toMatchObject({
      code: 0,
      stderr: expect.stringContaining('whose config has the job unknown'),
    })
  })

  it('lists, shows, retries and cancels', async () => {
    const jobId = await worker.enqueue('charge', { total: 7 })
    await worker.run(jobId)
    expect(await json('list', '--status', 'failed')).toMatchObject([
      { id: jobId, status: 'failed', attempts: 1 },
    ])
    expect(await json('list', '--status', 'completed')).toEqual([])
    await ctx.databases.primary.transaction((tx) =>
      markScheduled(tx, jobId, { schedule: 'hourly', dueAt: new Date('2026-05-01T03:00:00Z') }),
    )
    expect(await json('show', jobId)).toMatchObject({
      id: jobId,
      input: { total: 7 },
      schedule: 'hourly',
      scheduledFor: '2026-05-01T03:00:00.000Z',
      errors: [{ message: 'card refused', attempt: 1 }],
      transactions: [{ status: 'rolled_back', compensation: 'none' }],
    })
    const shown = await holdfast('show', jobId)
    expect(shown.stdout).toBe('')
    const madeBy = 'made by the schedule hourly for 2026-05-01T03:00:00.000Z'
    for (const text of [madeBy, 'card refused', 'rolled_back', `holdfast job retry ${jobId}`])
      expect(shown.stderr).toContain(text)

    await ctx.databases.primary.sql`insert into mended default values`
    expect(await json('retry', jobId)).toEqual({ jobId, status: 'queued' })
    expect(await worker.run(jobId)).toBe('completed')
    const other = await worker.enqueue('charge', null, { delayMs: 60_000 })
    expect(await json('cancel', other)).toEqual({ jobId: other, status: 'cancelled' })
    expect((await holdfast('list')).stderr).toMatch(/cancelled[^]*completed/)
  })

  it('enqueues, with a delay, a priority, a deduplication id', async () => {
    const flags = ['--delay-ms', '3600000', '--priority', '7', '--deduplication', 'monday']
    const first = await json('enqueue', 'charge', '--input', '{"total":9}', ...flags)
    expect(await json('enqueue', 'charge', ...flags)).toEqual(first)
    const { jobId } = first as { jobId: string }
    const [row] = await ctx.databases.primary.sql`
      select input, priority, run_at > now() + interval '30 s' as later from holdfast.jobs where id = ${jobId}`
    expect(row).toEqual({ input: { total: 9 }, priority: 7, later: true })
  })

  it('waits until the job has ended, and fails with it', async () => {
    for (const [mended, code] of [
      [false, 1],
      [true, 0],
    ] as const) {
      await ctx.databases.primary.sql`truncate mended`
      if (mended) await ctx.databases.primary.sql`insert into mended default values`
      const waiting = holdfast('enqueue', 'charge', '--wait', '--json')
      const due = () => ctx.databases.primary.sql<{ id: string }[]>`
        select id from holdfast.jobs where status = 'queued' and name = 'charge' and run_at <= now()`
      await expect.poll(due).toHaveLength(1)
      const jobId = (await due())[0]?.id ?? ''
      const status = await worker.run(jobId)
      const ended = await waiting
      expect(ended).toMatchObject({ code })
      expect(read(ended)).toMatchObject({ id: jobId, status })
    }
  })

  it('says what cannot be done, and what is wrong use', async () => {
    const jobId = await worker.enqueue('charge')
    await worker.run(jobId)
    expect(await holdfast('cancel', jobId)).toMatchObject({
      code: 1,
      stderr: expect.stringContaining('WRONG_JOB_STATE'),
    })
    expect(await holdfast('show', 'nothing')).toMatchObject({
      code: 1,
      stderr: expect.stringContaining('HOLDFAST_UNKNOWN_JOB'),
    })
    const wrong = [
      ['enqueue', 'nobody'],
      ['enqueue', 'charge', '--input', '{'],
      ['enqueue', 'charge', '--delay-ms', '-1'],
    ]
    for (const args of wrong) expect(await holdfast(...args)).toMatchObject({ code: 2 })
    expect(await holdfast('list', '--status', 'odd')).toMatchObject({ code: 2 })
  })
})
