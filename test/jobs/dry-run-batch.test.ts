import { describe, expect, it } from 'vitest'
import { defineBatch } from '../../src/jobs/batch-definition.ts'
import { dryRunBatch } from '../../src/jobs/dry-run-batch.ts'
import { keyset } from '../../src/jobs/keyset.ts'
import { newDatabases, openContext } from '../support/database.ts'
import { preparedGids } from '../support/prepared-gids.ts'

const definition = defineBatch({
  name: 'copy',
  source: keyset<{ id: number }>({ table: 'source', key: ['id'] }),
  chunkSize: 10,
  participants: ['billing'],
  async prepareRun({ tx }) {
    await tx`create table if not exists target (id int check (id <> 15))`
  },
  async process(rows, { tx, txs }) {
    await tx`insert into target ${tx(rows, 'id')}`
    await txs.billing`insert into target ${txs.billing(rows, 'id')}`
  },
})

async function arrange(rows: number) {
  const ctx = await openContext(await newDatabases({ billing: 'west' }))
  const { sql } = ctx.databases.primary
  await sql`create table source as select generate_series(1, ${rows}::int) as id`
  await sql`alter table source add primary key (id)`
  await ctx.databases.get('billing').sql`create table target (id int)`
  return {
    ctx,
    dryRun: (changes: Partial<typeof definition> = {}) =>
      dryRunBatch(ctx, { ...definition, ...changes }, {}, { chunks: 3 }),
    nothingIsLeft: async () => {
      expect(await sql`select to_regclass('target') as target`).toEqual([{ target: null }])
      expect(await ctx.databases.get('billing').sql`select from target`).toHaveLength(0)
      expect(await sql`select from holdfast.batch_positions`).toHaveLength(0)
      expect(await preparedGids(ctx)).toEqual([])
    },
  }
}

describe('a dry run', () => {
  it('stages chunks on all databases and rolls them back', async () => {
    const { dryRun, nothingIsLeft } = await arrange(14)
    const run = await dryRun()
    expect(run).toMatchObject({ rows: 14, error: null, last: true })
    expect(run.chunks.map(({ chunk, rows, cursor }) => [chunk, rows, cursor])).toEqual([
      [1, 10, ['10']],
      [2, 4, ['14']],
    ])
    for (const { workMs, prepareMs } of run.chunks) expect(Math.min(workMs, prepareMs)).toBeGreaterThan(0)
    await nothingIsLeft()
  })

  it('tells what fails in the work, and leaves nothing', async () => {
    const { dryRun, nothingIsLeft } = await arrange(40)
    const run = await dryRun()
    expect(run).toMatchObject({ rows: 10, last: false, error: expect.stringContaining('chunk 2: ') })
    expect(run.error).toContain('target_id_check')
    await nothingIsLeft()
  })

  it('tells what cannot be prepared, also when another database could', async () => {
    const { dryRun, nothingIsLeft } = await arrange(5)
    const run = await dryRun({
      async process(_rows, { tx }) {
        await tx`notify somebody`
      },
    })
    expect(run.error).toContain('cannot be prepared')
    await nothingIsLeft()
  })
})
