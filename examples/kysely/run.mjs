import { randomBytes } from 'node:crypto'
import { createHoldfast } from 'holdfast'
import { Kysely, PostgresDialect, sql } from 'kysely'
import pg from 'pg'
import { ownDatabases } from '../shared/own-databases.mjs'
import { ownFolder, startProcess } from '../shared/processes.mjs'
import { until } from '../shared/until.mjs'
import config from './holdfast.config.mjs'
import { readState, reconcile } from './reconcile.mjs'
import { signUp } from './sign-up.mjs'

process.env.LOG_LEVEL ??= 'error'
process.env.MAILER_SECRET = `whsec_${randomBytes(32).toString('base64')}`
const folder = await ownFolder()
const databases = await ownDatabases('mailing')
const open = (connectionString) =>
  new Kysely({ dialect: new PostgresDialect({ pool: new pg.Pool({ connectionString }) }) })
const primary = open(databases.urls.primary)
const mailing = open(databases.urls.mailing)
const hf = await createHoldfast({ ...config, migrate: true })
const start = (name, ...args) => startProcess(new URL(`./${name}.mjs`, import.meta.url), args)
const told = []
let mailer
let worker

async function hear(login, address, what) {
  const answer = await signUp(primary, hf, { login, address })
  told.push({ login, answer })
  console.log(`${login.padEnd(4)}  ${what.padEnd(42)} ${answer}`)
}
const mailsTo = async (login) =>
  (await readState({ primary, mailing })).mails.filter((to) => to === login).length

try {
  await sql`create table users (login text primary key, address text not null, active bool not null default false)`.execute(
    primary,
  )
  await sql`create table addresses (address text primary key, login text not null)`.execute(primary)
  await sql`create table accounts (login text not null)`.execute(primary)
  await sql`create table mails (login text not null, "to" text not null)`.execute(mailing)
  await sql`create table deliveries (login text not null, is_new bool not null)`.execute(mailing)

  mailer = start('mailer', '0', 'bob')
  const { port } = await mailer.message()
  process.env.MAILER_URL = `http://127.0.0.1:${port}/events`
  worker = start('worker')

  await hear('ada', 'ada@example.org', 'nothing goes wrong')
  await hear('cleo', 'ada@example.org', "ada's address: rolled back at the end")
  await until(async () => (await mailsTo('ada')) > 0)

  // The mail is there and the sink does not know; it tells the next mailer of the same event.
  const stalled = mailer.message()
  await hear('bob', 'bob@example.org', 'the mailer is killed before it answers')
  const progress = await stalled
  await mailer.kill()
  console.log(`bob   the mailer is killed: ${progress}`)
  mailer = start('mailer', String(port))
  await mailer.message()
  const deliveriesOfBob = async () =>
    (await readState({ primary, mailing })).deliveries.filter((login) => login === 'bob').length
  await until(async () => (await deliveriesOfBob()) > 1)
  const again = await mailing.selectFrom('deliveries').select('is_new').where('login', '=', 'bob').execute()
  const seen = again.map(({ is_new }) => (is_new ? 'new' : 'seen before')).join(', then ')
  console.log(`bob   his event came ${again.length} times: ${seen}; mails: ${await mailsTo('bob')}`)

  for (const job of await hf.jobs.list()) await hf.jobs.wait(job.id)
  await worker.stop()

  const result = reconcile({ told, state: await readState({ primary, mailing }) })
  console.log(JSON.stringify(result))
  process.exitCode = result.agrees ? 0 : 1
} finally {
  await worker?.kill()
  await mailer?.kill()
  await hf.close()
  await Promise.all([primary.destroy(), mailing.destroy()])
  await databases.drop()
  await folder.remove()
}
