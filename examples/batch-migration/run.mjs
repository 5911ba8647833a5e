import { createHoldfast } from 'holdfast'
import { ownFolder, startProcess } from '../shared/processes.mjs'
import { amountToCents } from './amount-to-cents.mjs'
import config from './holdfast.config.mjs'
import { readState, reconcile } from './reconcile.mjs'

const rows = 20_000
const poison = 12_345

process.env.LOG_LEVEL ??= 'error'
const folder = await ownFolder()
const hf = await createHoldfast({ ...config, migrate: true })
let worker
try {
  await hf.runDistributed('set-up', {
    stage: async (tx) => {
      await tx`create table invoices (
        id int primary key, amount text not null, cents bigint, conversions int not null default 0)`
      await tx`insert into invoices (id, amount) select n, (n / 100.0)::numeric(9, 2)::text
        from generate_series(1, ${rows}) n`
      await tx`update invoices set amount = 'twelve' where id = ${poison}`
    },
  })
  // Before the real thing: the first chunks are staged, prepared and rolled back.
  const tried = await hf.batches.dryRun(amountToCents)
  console.log(`dry run: ${tried.rows} rows in ${tried.chunks.length} chunks, and taken back`)

  worker = startProcess(new URL('./worker.mjs', import.meta.url))
  const { jobId } = await hf.batches.enqueue(amountToCents)
  while ((await hf.batches.progress(jobId)).rows < 1_000n)
    await new Promise((resolve) => setTimeout(resolve, 5))
  await worker.kill()
  const checkpoint = await hf.batches.progress(jobId)
  console.log(`the worker was killed; the checkpoint says ${checkpoint.rows} of ${rows} rows`)

  worker = startProcess(new URL('./worker.mjs', import.meta.url))
  const { status } = await hf.batches.wait(jobId)
  for (const { rowKey, error, sqlstate } of await hf.batches.failures(jobId))
    console.log(`${status}, but row ${JSON.stringify(rowKey)} was set aside: ${error} (${sqlstate})`)
  const before = await hf.batches.verify(jobId)
  console.log(`verify: ${before.proved ? 'proved' : `not proved, ${before.rows.failed} row has failed`}`)

  // The data is mended by hand, and what was set aside is tried again, in a transaction of its own.
  await hf.runDistributed('mend', {
    stage: async (tx) => {
      await tx`update invoices set amount = '12.00' where id = ${poison}`
    },
  })
  await hf.batches.retryFailures(jobId)
  while ((await hf.batches.failures(jobId)).some(({ state }) => state !== 'resolved'))
    await new Promise((resolve) => setTimeout(resolve, 50))
  await hf.batches.wait(jobId)
  await worker.stop()
  const { proved, chunks } = await hf.batches.verify(jobId)
  console.log(`verify: ${proved ? 'proved' : 'not proved'}, ${chunks} chunks`)

  const result = {
    ...reconcile({ rows, state: await readState(hf), proved }),
    killedAt: Number(checkpoint.rows),
    setAside: Number(before.rows.failed),
  }
  console.log(JSON.stringify(result))
  process.exitCode = result.agrees ? 0 : 1
} finally {
  await worker?.kill()
  await hf.close()
  await folder.remove()
}
