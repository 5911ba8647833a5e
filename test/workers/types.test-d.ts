import { expect, expectTypeOf, it } from 'vitest'
import { z } from 'zod'
import {
  createHoldfast,
  createProducer,
  defineBatch,
  defineConfig,
  defineJob,
  type EventRunner,
  type Holdfast,
  keyset,
} from '../../src/index.ts'
import type workerConfig from '../support/worker.config.ts'

/** What must not compile. Vitest's typecheck mode checks each `@ts-expect-error`; nothing here runs. */
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
const provision = defineJob({
  name: 'provision-user',
  input: z.object({ email: z.string(), since: z.string().transform((text) => new Date(text)) }),
  participants: ['primary', 'billing'],
  async stage({ tx, txs, input }) {
    await tx`insert into users values (${input.email}, ${input.since.getTime()})`
    await txs.billing`insert into customers values (${input.email})`
    // @ts-expect-error it takes no part
    expect(txs.warehouse).toBeUndefined()
    return { at: new Date(), id: 7, note: undefined as string | undefined }
  },
  async effects({ staged, input }) {
    const at: string = staged.at
    const note: string | undefined = staged.note
    // @ts-expect-error a staged date has become text
    const date: Date = staged.at
    expect([at, note, date, input.since.getTime()]).toBeDefined()
    return staged.id
  },
  async compensate({ staged, input }) {
    const id: number = staged.id
    // @ts-expect-error nothing of that name was staged
    expect([id, input.email, staged.nothing]).toBeDefined()
  },
})
const sweep = defineJob({
  name: 'sweep',
  participants: ['billing'],
  async stage({ tx, txs }) {
    // @ts-expect-error primary takes no part
    await tx`select 1`
    await txs.billing`select 1`
  },
})
const config = defineConfig({
  databases: { primary: 'postgres://x', billing: 'postgres://y' },
  jobs: [provision, sweep],
  batches: [backfill],
})

it('an instance knows the names, inputs and results of its config', async () => {
  const hf: Holdfast<typeof config> = await createHoldfast(config)
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
  const input = { email: 'a', since: '2026-01-01' }
  await hf.enqueue(provision, input, { delayMs: 5, priority: 1, deduplication: { id: 'a' } })
  await hf.enqueue('provision-user', input)
  await hf.enqueue('sweep', { anything: 1 })
  for (const enqueued of [await hf.enqueue(provision, input), await hf.enqueue('provision-user', input)]) {
    const { result } = await hf.jobs.wait(enqueued)
    const id: number | null = result
    // @ts-expect-error its effects return a number
    const text: string | null = result
    expect([id, text, (await hf.jobs.wait(enqueued.jobId)).result]).toBeDefined()
  }
  // @ts-expect-error there is no such job
  await hf.enqueue('provision-usr', input)
  // @ts-expect-error since is missing
  await hf.enqueue('provision-user', { email: 'a' })
  // @ts-expect-error email is text
  await hf.enqueue(provision, { ...input, email: 1 })
  // @ts-expect-error what goes in is text, not what the schema makes of it
  await hf.enqueue(provision, { ...input, since: new Date() })
  // @ts-expect-error the config has no such job
  await hf.enqueue(defineJob({ name: 'other', stage: async () => 1 }), null)
  // @ts-expect-error a job takes part on a database that this config does not declare
  defineConfig({ databases: { primary: 'postgres://x' }, jobs: [provision] })
  // @ts-expect-error the same
  await createHoldfast({ jobs: [sweep] })
  // @ts-expect-error an event has a type
  await hf.publish({ query: async () => undefined }, { subject: 'x' })
})

it('a producer knows them from the type of a config alone', async () => {
  const tx = {} as EventRunner
  const producer = createProducer<typeof config>({ databases: { primary: 'postgres://x' } })
  const input = { email: 'a', since: '2026-01-01' }
  const { jobId } = await producer.enqueue('provision-user', input, { tx, delayMs: 5 })
  expectTypeOf(jobId).toEqualTypeOf<string>()
  await producer.enqueue('sweep', { anything: jobId })
  // @ts-expect-error there is no such job
  await producer.enqueue('provision-usr', input)
  // @ts-expect-error since is missing
  await producer.enqueue('provision-user', { email: 'a' })
  // @ts-expect-error what goes in is text, not what the schema makes of it
  await producer.enqueue('provision-user', { ...input, since: new Date() })
  // @ts-expect-error there is no such option
  await producer.enqueue('provision-user', input, { txs: tx })
  // @ts-expect-error an event has a type
  await producer.publish(tx, { subject: 'x' })
  // @ts-expect-error it needs the primary database alone
  createProducer<typeof config>({ databases: { billing: 'postgres://x' } })
  const worker = createProducer<typeof workerConfig>()
  await worker.enqueue('count', 1)
  // @ts-expect-error the config of that file has no such job
  await worker.enqueue('cuont', 1)
  // Without a config any name and input is taken.
  await createProducer().enqueue('anything', 1)
})

it('a schedule is for what the config has', () => {
  const cron = '0 * * * *'
  const jobs = [provision] as const
  const databases = { primary: 'postgres://x', billing: 'postgres://y' }
  const { schedules } = defineConfig({
    databases,
    jobs,
    schedules: [{ job: provision, input: { email: 'a' }, cron }],
  })
  expectTypeOf(schedules[0].job.name).toEqualTypeOf<'provision-user'>()
  defineConfig({ databases, batches: [backfill], schedules: [{ batch: 'backfill', params: {}, cron }] })
  // @ts-expect-error there is no such job
  defineConfig({ databases, jobs, schedules: [{ job: 'provision-usr', cron }] })
  // @ts-expect-error the config has no such job
  defineConfig({ databases, jobs, schedules: [{ job: sweep, cron }] })
  // @ts-expect-error there is no such batch
  defineConfig({ databases, batches: [backfill], schedules: [{ batch: 'backfil', cron }] })
  // @ts-expect-error there are no batches at all
  defineConfig({ databases, schedules: [{ batch: backfill, cron }] })
  const [some]: string[] = ['provision-user']
  defineConfig({ databases, jobs, schedules: [{ job: some ?? '', cron }] })
  // @ts-expect-error a job and a batch
  defineConfig({ databases, jobs, schedules: [{ job: provision, batch: backfill, cron }] })
  // @ts-expect-error a job has input
  defineConfig({ databases, jobs, schedules: [{ job: provision, params: {}, cron }] })
  // @ts-expect-error neither a job nor a batch
  defineConfig({ databases, jobs, schedules: [{ cron }] })
})

it('a literal config keeps its names', () => {
  expectTypeOf(config.batches[0].name).toEqualTypeOf<'backfill'>()
})
