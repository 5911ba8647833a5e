import { createHoldfast } from 'holdfast'
import { ownFolder, startProcess } from '../shared/processes.mjs'
import { startService } from '../shared/stub-service.mjs'
import config from './holdfast.config.mjs'
import { readState, reconcile } from './reconcile.mjs'

process.env.LOG_LEVEL ??= 'error'
const folder = await ownFolder()
const accounts = await startService({ 'payroll cleo': 'time-out' })
process.env.ACCOUNTS_URL = accounts.url
const hf = await createHoldfast({ ...config, migrate: true })

const start = (name, ...args) => startProcess(new URL(`./${name}.mjs`, import.meta.url), args)
const service = (name, command, requests) => start('service', name, command, JSON.stringify(requests))
const people = ['ada', 'bob', 'cleo']

try {
  await hf.runDistributed('set-up', {
    stage: async (tx) => {
      await tx`create table employees (name text not null)`
    },
  })

  // One process begins, and is killed as soon as everything is prepared.
  const began = start('begin', ...people)
  const { tokens } = await began.message()
  await began.kill()
  const { state } = await hf.outcome('hire-ada')
  console.log(`the process that began is killed; what it staged is ${state}`)
  const asked = (name, person) => ({ person, token: tokens[person][name] })

  // Another one votes. Nothing is decided as long as somebody has not.
  const email = service('email', 'vote', [
    asked('email', 'ada'),
    asked('email', 'bob'),
    asked('email', 'cleo'),
  ])
  console.log(await email.result())

  // A third has the last vote on each. It commits the first, is against the second, and dies over the third, between
  // what it made ready and its vote.
  const made = accounts.done('payroll cleo')
  const payroll = service('payroll', 'vote', [
    asked('payroll', 'ada'),
    { ...asked('payroll', 'bob'), choice: 'abort' },
    asked('payroll', 'cleo'),
  ])
  await made
  console.log(await payroll.kill())
  console.log('payroll is killed before it could vote on cleo')

  // Started again it does the same again, and votes.
  console.log(await service('payroll', 'vote', [asked('payroll', 'cleo')]).result())

  // What email made ready for bob has to go.
  console.log(await service('email', 'settle', people).result())
  console.log(await service('payroll', 'settle', people).result())

  const result = reconcile({ people, state: await readState(hf), ledger: accounts.ledger() })
  console.log(JSON.stringify(result))
  process.exitCode = result.agrees ? 0 : 1
} finally {
  await hf.close()
  accounts.close()
  await folder.remove()
}
