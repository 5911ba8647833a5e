// node mailer.mjs PORT [LOGIN]: sends one mail for each event that it is told of, however often. With a login it stops
// between the commit of that mail and its answer.
import { once } from 'node:events'
import { createServer } from 'node:http'
import { createProducer } from 'holdfast'
import { Kysely, PostgresDialect } from 'kysely'
import pg from 'pg'
import { Webhook } from 'standardwebhooks'
import { waitToBeKilled } from '../shared/processes.mjs'
import { runnerOf } from './runner-of.mjs'

const [port, stallsAt] = process.argv.slice(2)
const pool = new pg.Pool({ connectionString: process.env.HOLDFAST_DATABASE_MAILING_URL })
const db = new Kysely({ dialect: new PostgresDialect({ pool }) })
const holdfast = createProducer()
const verifier = new Webhook(process.env.MAILER_SECRET)

async function takeDelivery(request) {
  const event = verifier.verify(await text(request), request.headers)
  // That the event was seen and what came of it commit together, or neither does.
  const isNew = await db.transaction().execute(async (trx) => {
    const isNew = await holdfast.once(runnerOf(trx), 'mailer', event.id)
    if (isNew)
      await trx.insertInto('mails').values({ login: event.subject, to: event.data.address }).execute()
    return isNew
  })
  await db.insertInto('deliveries').values({ login: event.subject, is_new: isNew }).execute()
  if (event.subject === stallsAt) await waitToBeKilled('the mail is committed, the delivery is not answered')
}

async function text(request) {
  const chunks = []
  for await (const chunk of request) chunks.push(chunk)
  return Buffer.concat(chunks).toString()
}

const server = createServer((request, response) => {
  void takeDelivery(request).then(
    () => response.writeHead(204).end(),
    // Whatever it was, nothing is committed, so the event may come again.
    () => response.writeHead(503).end(),
  )
})
const stop = () => process.exit()
process.once('SIGTERM', stop)
process.once('disconnect', stop)
server.listen(Number(port), '127.0.0.1')
await once(server, 'listening')
process.send({ port: server.address().port })
