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

/** Begins in a process of its own, which is killed as soon as the transaction is prepared. */
async function begin(person) {
  const process = startProcess(new URL('./begin.mjs', import.meta.url), [person])
  const { tokens } = await process.message()
  await process.kill()
  const { state } = await hf.outcome(`hire-${person}`)
  console.log(`the process that began to hire ${person} was killed; its work is ${state}`)
  return tokens
}

const service = (...args) => startProcess(new URL('./service.mjs', import.meta.url), args)
const says = async (...args) => console.log(await service(...args).result())

try {
  await hf.runDistributed('set-up', {
    stage: async (tx) => {
      await tx`create table employees (name text not null)`
    },
  })

  // One process began, another votes, a third has the last vote, and with it commits.
  const ada = await begin('ada')
  await says('email', 'ada', ada.email)
  await says('payroll', 'ada', ada.payroll)

  // One service is ready, the other one is against it: nobody is hired, and the mailbox has to go.
  const bob = await begin('bob')
  await says('email', 'bob', bob.email)
  await says('payroll', 'bob', bob.payroll, 'abort')

  // A service dies between what it made ready and its vote. It is started again, and does the same again.
  const cleo = await begin('cleo')
  await says('email', 'cleo', cleo.email)
  const made = accounts.done('payroll cleo')
  const payroll = service('payroll', 'cleo', cleo.payroll)
  await made
  await payroll.kill()
  console.log('payroll was killed before it could vote on cleo')
  await says('payroll', 'cleo', cleo.payroll)

  const people = ['ada', 'bob', 'cleo']
  await says('email', 'settle', ...people)
  await says('payroll', 'settle', ...people)

  const result = reconcile({ people, state: await readState(hf), ledger: accounts.ledger() })
  console.log(JSON.stringify(result))
  process.exitCode = result.agrees ? 0 : 1
} finally {
  await hf.close()
  accounts.close()
  await folder.remove()
}
