// node service.mjs SERVICE vote '[{ "person", "token", "choice" }…]': a service that has a say.
// node service.mjs SERVICE settle '[person…]': looks what became of them, and takes back what is not needed.
import { createHoldfast } from 'holdfast'
import { callService } from '../shared/call-service.mjs'
import config from './holdfast.config.mjs'

const [service, command, list] = process.argv.slice(2)
const accounts = `${process.env.ACCOUNTS_URL}/${service}`
const hf = await createHoldfast(config)
const signal = AbortSignal.timeout(60_000)
for (const request of JSON.parse(list)) await (command === 'settle' ? settle(request) : takePart(request))
await hf.close()

/** First make ready what the service answers for, then say so: a vote is final. */
async function takePart({ person, token, choice = 'ready' }) {
  if (choice === 'ready')
    await callService(accounts, { key: `hire-${person}`, body: { subject: person }, signal })
  const { state, votes } = await hf.vote(`hire-${person}`, service, choice, { token })
  console.log(`${service} votes ${choice} on ${person}: ${state}, ${votes.ready} of ${votes.of} ready`)
}

/** Whoever said `ready` is bound until the outcome is known; asking again is always safe. */
async function settle(person) {
  const { state } = await hf.outcome(`hire-${person}`)
  if (state === 'rolled_back')
    await callService(`${accounts}/hire-${person}`, { method: 'DELETE', key: `undo-${person}`, signal })
  console.log(`${service} finds ${person} ${state}`)
}
