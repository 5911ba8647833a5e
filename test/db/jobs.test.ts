import { randomBytes } from 'node:crypto'
import { describe, expect, it, onTestFinished } from 'vitest'
import { createClient } from '../../src/db/client.ts'
import { removeOldJobs } from '../../src/db/jobs.ts'
import { cancelJob } from '../../src/jobs/job-control.ts'
import { defineJob } from '../../src/jobs/job-definition.ts'
import { newJobProcesses } from '../support/jobs.ts'

const place = defineJob({ name: 'place', stage: () => null })

describe('holdfast.enqueue', () => {
  it('records a job in the transaction that calls it, for a login that may do nothing else', async () => {
    const [one] = await newJobProcesses([place])
    const { url } = one.ctx.databases.primary
    const owner = createClient(url, { max: 1 })
    onTestFinished(() => owner.end())
    const role = `test_${randomBytes(6).toString('hex')}`
    await owner.unsafe(`create role ${role} login password '${role}'`)
    onTestFinished(async () => void (await owner.unsafe(`drop owned by ${role}; drop role ${role}`)))
    await owner.unsafe(`grant usage on schema holdfast to ${role}; grant insert on holdfast.jobs to ${role}`)
    const shop = createClient(Object.assign(new URL(url), { username: role, password: role }).href, {
      max: 1,
    })
    onTestFinished(() => shop.end())

    const undone = shop.begin(async (tx) => {
      await tx`select holdfast.enqueue('place', '{"n":1}')`
      throw new Error('undone')
    })
    await expect(undone).rejects.toThrow('undone')
    const [row] = await shop<{ id: string }[]>`select holdfast.enqueue('place', '{"n":2}') as id`
    const jobs = await owner`select id, input, status from holdfast.jobs`
    expect(jobs.map((job) => ({ ...job }))).toEqual([{ id: row?.id, input: { n: 2 }, status: 'queued' }])
    expect(await one.run(row?.id ?? '')).toBe('completed')
    await expect(shop`select * from holdfast.jobs`).rejects.toMatchObject({ code: '42501' })
  })

  it.each([
    [`'Not a name', '1'`, '22023'],
    [`null, '1'`, '22023'],
    [`'place', '1', -1`, '22023'],
    [`'place', '1', 0, 9999999`, '22023'],
    [`'place', '{'`, '22P02'],
  ])('refuses (%s)', async (args, code) => {
    const [one] = await newJobProcesses([place])
    const { sql } = one.ctx.databases.primary
    await expect(sql.unsafe(`select holdfast.enqueue(${args})`)).rejects.toMatchObject({ code })
  })

  it('takes a delay, a priority and a deduplication id', async () => {
    const [one] = await newJobProcesses([place])
    const { sql } = one.ctx.databases.primary
    const enqueue = () => sql`select holdfast.enqueue('place', '1', 60000, 7, 'a') as id`
    expect(await enqueue()).toEqual(await enqueue())
    const rows = await sql`
      select priority, dedup_key, run_at - created_at > interval '59 seconds' as late from holdfast.jobs`
    expect(rows).toEqual([{ priority: 7, dedup_key: 'a', late: true }])
  })
})

describe('retention', () => {
  it('removes what has ended, what failed later, and nothing that may still be asked for', async () => {
    const [one] = await newJobProcesses([place])
    const { sql } = one.ctx.databases.primary
    const ids = await Promise.all(Array.from({ length: 5 }, () => one.enqueue('place')))
    const [done = '', cancelled = '', failed = '', owing = '', queued = ''] = ids
    await one.run(done)
    await cancelJob(one.ctx, cancelled)
    await one.run(owing)
    await sql`update holdfast.jobs set status = 'failed', finished_at = clock_timestamp() where id in (${failed}, ${owing})`
    await sql`
      update holdfast.distributed_transactions set compensation = 'failed' where name = ${`job:${owing}`}`
    await sql`
      update holdfast.jobs set created_at = created_at - interval '1 hour', finished_at = finished_at - interval '1 hour'`
    const left = async () =>
      (await sql<{ id: string }[]>`select id from holdfast.jobs`).map(({ id }) => id).toSorted()
    const remove = (failedMs: number) =>
      one.ctx.databases.primary.transaction((tx) => removeOldJobs(tx, { endedMs: 1_000, failedMs }, 10))
    expect(await remove(86_400_000)).toBe(2)
    expect(await left()).toEqual([failed, owing, queued].toSorted())
    expect(await remove(1_000)).toBe(1)
    expect(await left()).toEqual([owing, queued].toSorted())
  })
})
