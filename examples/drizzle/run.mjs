import { eq, sql } from 'drizzle-orm'
import { drizzle } from 'drizzle-orm/node-postgres'
import { createHoldfast } from 'holdfast'
import pg from 'pg'
import { ownDatabases } from '../shared/own-databases.mjs'
import { ownFolder, startProcess } from '../shared/processes.mjs'
import { until } from '../shared/until.mjs'
import config from './holdfast.config.mjs'
import { readState, reconcile } from './reconcile.mjs'
import { stock, tables } from './schema.mjs'

process.env.LOG_LEVEL ??= 'error'
const folder = await ownFolder()
const databases = await ownDatabases('reporting')
const primary = new pg.Client({ connectionString: databases.urls.primary })
const reporting = new pg.Client({ connectionString: databases.urls.reporting })
const hf = await createHoldfast({ ...config, migrate: true })
const shop = (...args) => startProcess(new URL('./shop.mjs', import.meta.url), args)
const told = []
let worker

/** What the client of an order hears. */
function tell(id, answer, what) {
  told.push({ id, answer })
  console.log(`${id}  ${what.padEnd(44)} ${answer}`)
}

try {
  await Promise.all([primary.connect(), reporting.connect()])
  await primary.query(tables)
  const db = drizzle(primary)
  await db.insert(stock).values([
    { article: 'teapot', pieces: 10 },
    { article: 'samovar', pieces: 0 },
  ])
  worker = startProcess(new URL('./worker.mjs', import.meta.url))

  tell('order-1', await shop('order-1', 'teapot').result(), 'nothing goes wrong')
  tell('order-2', await shop('order-2', 'teapot', 'refuse').result(), 'rolled back when all was written')

  // Killed between the statements. The client has no answer, so it asks again.
  const stalled = shop('order-3', 'teapot', 'stall')
  const progress = await stalled.message()
  await stalled.kill()
  console.log(`order-3  the shop is killed: ${progress}`)
  tell('order-3', await shop('order-3', 'teapot').result(), 'the same again')

  // The order stands; its job fails, and takes back what it wrote through Drizzle. Retried, it goes through.
  tell('order-4', await shop('order-4', 'samovar').result(), 'ordered while there are none left')
  const [{ id: jobId }] = (await hf.jobs.list()).filter((job) => job.input.id === 'order-4')
  const { status, errors } = await hf.jobs.wait(jobId)
  const { rowCount } = await primary.query(`select 1 from shipments where "order" = 'order-4'`)
  console.log(`order-4  its job has ${status} with ${errors.at(-1).sqlstate}, shipments: ${rowCount}`)
  await db
    .update(stock)
    .set({ pieces: sql`${stock.pieces} + 5` })
    .where(eq(stock.article, 'samovar'))
  await hf.jobs.retry(jobId)
  console.log(`order-4  five have come in, and its job has ${(await hf.jobs.wait(jobId)).status}`)

  for (const job of await hf.jobs.list()) await hf.jobs.wait(job.id)
  await until(async () => {
    const published = await primary.query('select count(*)::int as events from holdfast.outbox')
    return (await readState({ primary, reporting })).events.length >= published.rows[0].events
  })
  await worker.stop()

  const result = reconcile({ told, filled: 15, state: await readState({ primary, reporting }) })
  console.log(JSON.stringify(result))
  process.exitCode = result.agrees ? 0 : 1
} finally {
  await worker?.kill()
  await hf.close()
  await Promise.all([primary.end(), reporting.end()])
  await databases.drop()
  await folder.remove()
}
