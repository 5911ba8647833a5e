import { randomUUID } from 'node:crypto'
import { createHoldfast } from 'holdfast'
import { ownDatabases } from '../shared/own-databases.mjs'
import { ownFolder, startProcess } from '../shared/processes.mjs'
import { until } from '../shared/until.mjs'
import config from './holdfast.config.mjs'
import { reconcile } from './reconcile.mjs'
import { startPsql, whyNoPsql } from './start-psql.mjs'

process.env.LOG_LEVEL ??= 'error'
const missing = await whyNoPsql()
if (missing !== undefined) {
  console.log(JSON.stringify({ agrees: false, problems: [missing] }))
  process.exit(1)
}

const folder = await ownFolder()
const databases = await ownDatabases('warehouse')
const { urls } = databases
const hf = await createHoldfast({ ...config, migrate: true })
const login = { user: 'shop', password: randomUUID() }
const told = []
let worker

const place = (id, pieces, more, input) =>
  startPsql(urls.primary, 'place-order.sql', { id, article: 'teapot', pieces, ...more }, { login, input })

/** What psql said in the end, printed and kept. */
async function tell(id, psql, what) {
  const { code, output, error } = await psql.result()
  const answer = code === 0 && output.endsWith('placed') ? 'placed' : 'refused'
  told.push({ id, answer })
  console.log(`${id}  ${what.padEnd(38)} exit code ${code}  ${error || answer}`)
}

async function read() {
  const shop = await startPsql(urls.primary, 'read-shop.sql').result()
  const warehouse = await startPsql(urls.warehouse, 'read-warehouse.sql').result()
  return { shop: JSON.parse(shop.output), events: JSON.parse(warehouse.output) }
}

try {
  const schema = startPsql(urls.primary, 'schema.sql', {}, { input: `${login.password}\n` })
  const { code, error } = await schema.result()
  if (code !== 0) throw new Error(`schema.sql: ${error}`)
  worker = startProcess(new URL('./worker.mjs', import.meta.url))

  await tell('order-1', place('order-1', 2), 'nothing goes wrong')
  await tell('order-2', place('order-2', 99), 'an error after event and job')

  // Everything is written, and psql asks whether to commit; instead of an answer there is nobody any more.
  const asking = place('order-3', 3, { ask: 1 })
  await asking.asks('commit?')
  await asking.kill()
  console.log('order-3  psql is killed while it asks whether to commit')
  await tell('order-3', place('order-3', 3, { ask: 1 }, 'yes\n'), 'the same again, answered with yes')
  await tell('order-4', place('order-4', 1, { ask: 1 }, 'no\n'), 'answered with no')

  for (const job of await hf.jobs.list()) await hf.jobs.wait(job.id)
  await until(async () => {
    const { shop, events } = await read()
    return events.length >= shop.published
  })
  await worker.stop()

  const result = reconcile({ told, initial: 10, ...(await read()) })
  console.log(JSON.stringify(result))
  process.exitCode = result.agrees ? 0 : 1
} finally {
  await worker?.kill()
  await hf.close()
  await databases.drop()
  await folder.remove()
}
