import { describe, expect, it } from 'vitest'
import { z } from 'zod'
import { defineBatch, defineConfig, type Holdfast, keyset } from '../../src/index.ts'

/** What must not compile. `npm run types` checks each `@ts-expect-error`; nothing here runs. */
const backfill = defineBatch({
  name: 'backfill',
  params: z.object({ since: z.string() }),
  source: keyset<{ id: number }>({ table: 'orders', key: ['id'] }),
  async process(rows, { params }) {
    const id: number | undefined = rows[0]?.id
    const since: string = params.since
    // @ts-expect-error rows have no such column
    const total: unknown = rows[0]?.total
    expect([id, since, total]).toBeDefined()
  },
})
const config = defineConfig({
  databases: { primary: 'postgres://x', billing: 'postgres://y' },
  batches: [backfill],
})

export async function mistakes(hf: Holdfast<typeof config>): Promise<void> {
  await hf.beginDistributed('a', { primary: async () => 1, billing: async () => 'x' })
  // @ts-expect-error there is no such database
  await hf.beginDistributed('a', { warehouse: async () => 1 })
  const { staged } = await hf.beginDistributed('a', { billing: async () => 'x' })
  const text: string = staged.billing
  // @ts-expect-error the work returned text
  const wrong: number = staged.billing
  await hf.batches.enqueue(backfill, { since: text })
  await hf.batches.enqueue('backfill', { since: text })
  // @ts-expect-error there is no such batch
  await hf.batches.enqueue('backfil')
  // @ts-expect-error since is text
  await hf.batches.enqueue(backfill, { since: wrong })
  // @ts-expect-error an event has a type
  await hf.publish({ query: async () => undefined }, { subject: 'x' })
}

describe('the types', () => {
  it('keep the names of a literal config', () => {
    expect(config.batches[0].name satisfies 'backfill').toBe('backfill')
  })
})
