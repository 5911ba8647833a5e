// node service.mjs SERVICE PERSON TOKEN [ready|abort]: one of the services that have a say.
// node service.mjs SERVICE settle PERSON…: looks what became of them, and takes back what is not needed.
import { createHoldfast } from 'holdfast'
import { callService } from '../shared/call-service.mjs'
import config from './holdfast.config.mjs'

const [service, ...args] = process.argv.slice(2)
const accounts = `${process.env.ACCOUNTS_URL}/${service}`
const hf = await createHoldfast(config)
const signal = AbortSignal.timeout(30_000)
if (args[0] === 'settle') await settle(args.slice(1))
else await takePart(...args)
await hf.close()

/** First make ready what the service answers for, then say so: a vote is final. */
async function takePart(person, token, choice = 'ready') {
  if (choice === 'ready')
    await callService(accounts, { key: `hire-${person}`, body: { subject: person }, signal })
  const { state, votes } = await hf.vote(`hire-${person}`, service, choice, { token })
  console.log(`${service} votes ${choice} on ${person}: ${state}, ${votes.ready} of ${votes.of} ready`)
}

/** Whoever said `ready` is bound until the outcome is known; asking again is always safe. */
async function settle(people) {
  for (const person of people) {
    const { state } = await hf.outcome(`hire-${person}`)
    if (state === 'rolled_back')
      await callService(`${accounts}/hire-${person}`, { method: 'DELETE', key: `undo-${person}`, signal })
    console.log(`${service} finds ${person} ${state}`)
  }
}
