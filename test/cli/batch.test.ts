import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { afterAll, describe, expect, inject, it } from 'vitest'
import type { BatchDefinition } from '../../src/jobs/batch-definition.ts'
import { runBatch } from '../../src/jobs/run-batch.ts'
import { newDatabases, openContext } from '../support/database.ts'
import { type Ended, HoldfastProcess } from '../support/process.ts'

const urls = await newDatabases()
const ctx = await openContext(urls)
const { sql } = ctx.databases.primary
await sql`create table source (id int primary key)`
await sql`create table target (id int)`
await sql`insert into source select generate_series(1, 47)`

const cwd = await mkdtemp(join(tmpdir(), 'holdfast-batch-'))
afterAll(() => rm(cwd, { recursive: true, force: true }))
const library = pathToFileURL(join(inject('compiled'), 'src/index.js')).href
await writeFile(
  join(cwd, 'holdfast.config.mjs'),
  `import { defineBatch, keyset } from ${JSON.stringify(library)}
   const copy = defineBatch({
     name: 'copy', source: keyset({ table: 'source', key: ['id'] }), chunkSize: 10, skipLimit: 5,
     params: { '~standard': { version: 1, vendor: 'test', validate: (value) =>
       typeof value.year === 'number' ? { value } : { issues: [{ message: 'year is a number' }] } } },
     async process(rows, { tx }) {
       if (rows.some(({ id }) => id === 25)) throw new Error('25 makes no sense')
       await tx\`insert into target \${tx(rows, 'id')}\`
     },
   })
   export default { databases: ${JSON.stringify(urls)}, batches: [copy] }`,
)
const { default: config } = (await import(pathToFileURL(join(cwd, 'holdfast.config.mjs')).href)) as {
  default: { batches: BatchDefinition[] }
}
const definitions = new Map(config.batches.map((batch) => [batch.name, batch]))

const holdfast = (...args: string[]) => new HoldfastProcess(['batch', ...args], {}, cwd).ended
function read({ stdout }: Ended): Record<string, unknown> {
  expect(stdout.trimEnd().split('\n')).toHaveLength(1)
  return JSON.parse(stdout) as Record<string, unknown>
}
async function json(...args: string[]): Promise<Record<string, unknown>> {
  const ended = await holdfast(...args, '--json')
  expect(ended).toMatchObject({ code: 0 })
  return read(ended)
}

describe('holdfast batch', () => {
  it('explains each of its commands', async () => {
    const help = await holdfast('--help')
    expect(help).toMatchObject({ code: 0, stderr: '' })
    const commands = 'list show enqueue pause resume cancel watch verify retry-failures'.split(' ')
    for (const command of commands) expect(help.stdout).toContain(command)
    const own = await Promise.all(commands.map((command) => holdfast(command, '--help')))
    for (const ended of own)
      expect(ended).toMatchObject({ code: 0, stdout: expect.stringContaining('--json') })
  })

  it('enqueues, pauses, resumes, shows, watches, verifies and retries', async () => {
    const { jobId } = (await json('enqueue', 'copy', '--params', '{"year":2026}')) as { jobId: string }
    expect(await json('pause', jobId)).toEqual({ jobId, status: 'paused' })
    const paused = await holdfast('watch', jobId)
    expect(paused).toMatchObject({ code: 1, stderr: expect.stringContaining('paused') })
    expect(await json('resume', jobId)).toEqual({ jobId, status: 'queued' })

    const watched = holdfast('watch', jobId, '--json')
    const timing = { maxFailures: 1, backoffMs: 1, maxBackoffMs: 5 }
    expect(await runBatch(ctx, definitions, jobId, new AbortController().signal, timing)).toBe('completed')
    const ended = await watched
    expect(ended.code).toBe(0)
    expect(read(ended)).toMatchObject({
      id: jobId,
      status: 'completed',
      rows: 46,
      failed: 1,
      rowsExpected: 47,
    })

    const shown = await holdfast('show', jobId)
    expect(shown.code).toBe(0)
    expect(shown.stderr).toContain('25 makes no sense')
    expect(shown.stderr).toContain(`holdfast batch retry-failures ${jobId}`)
    expect(await json('show', jobId)).toMatchObject({ failures: [{ rowKey: ['25'], state: 'failed' }] })

    const unproved = await holdfast('verify', jobId, '--json')
    expect(unproved).toMatchObject({ code: 1, stderr: expect.stringContaining('1 failed') })
    expect(read(unproved)).toMatchObject({
      proved: false,
      changedChunks: 0,
      rows: { processed: 46, failed: 1 },
    })

    await sql`update source set id = 1025 where id = 25`
    expect(await json('retry-failures', jobId)).toEqual({ jobId, rows: 1 })
    await runBatch(ctx, definitions, jobId, new AbortController().signal, timing)
    const changed = await holdfast('verify', jobId)
    expect(changed).toMatchObject({ code: 1, stderr: expect.stringMatching(/1 chunks differ[^]*not proved/) })
    await sql`update source set id = 25 where id = 1025`
    expect(await holdfast('verify', jobId)).toMatchObject({
      code: 0,
      stderr: expect.stringContaining('proved: each row'),
    })
    expect(await holdfast('list', '--status', 'completed')).toMatchObject({
      code: 0,
      stderr: expect.stringContaining(jobId),
    })
  })

  it('cancels for good, and says what cannot be done', async () => {
    const { jobId } = (await json('enqueue', 'copy', '--params', '{"year":1}')) as { jobId: string }
    expect(await json('cancel', jobId, '--force')).toEqual({ jobId, status: 'cancelled' })
    const resumed = await holdfast('resume', jobId)
    expect(resumed).toMatchObject({ code: 1, stderr: expect.stringContaining('HOLDFAST_WRONG_BATCH_STATE') })
  })

  it.each([
    ['an unknown batch', ['enqueue', 'nothing'], 'known: copy', 2],
    ['parameters that are wrong', ['enqueue', 'copy', '--params', '{}'], 'year is a number', 1],
    ['parameters that are no JSON', ['enqueue', 'copy', '--params', '{'], 'JSON, as in', 2],
    ['an unknown job', ['show', 'nobody'], 'no batch job nobody', 1],
    ['an unknown state', ['list', '--status', 'lost'], 'Allowed choices', 2],
  ])('refuses %s and says what would be right', async (_what, args, advice, code) => {
    const ended = await holdfast(...args)
    expect(ended).toMatchObject({ code, stdout: '', stderr: expect.stringContaining(advice) })
  })
})
