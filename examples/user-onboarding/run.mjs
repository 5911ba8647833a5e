import { createHoldfast } from 'holdfast'
import { ownFolder, startProcess } from '../shared/processes.mjs'
import { startService } from '../shared/stub-service.mjs'
import config from './holdfast.config.mjs'
import { onboardUser, services } from './onboard-user.mjs'
import { readState, reconcile } from './reconcile.mjs'

const cases = {
  ada: 'nothing goes wrong',
  bob: 'the mailbox fails before it is made',
  cleo: 'the directory fails after it made the entry',
  dan: 'the team is made, without an answer',
  eve: 'the team refuses: nothing may be left',
  finn: 'the same, and taking back the directory fails',
  gil: 'the worker is killed after the mailbox was made',
}

process.env.LOG_LEVEL ??= 'error'
const folder = await ownFolder()
const provisioning = await startService({
  'mailboxes bob': 'error-before',
  'directory cleo': 'error-after',
  'teams dan': 'time-out',
  'teams eve': 'refuse',
  'teams finn': 'refuse',
  'undo directory finn': 'error-after',
  'mailboxes gil': 'time-out',
})
process.env.PROVISIONING_URL = provisioning.url
const hf = await createHoldfast({ ...config, migrate: true })
let worker
try {
  await hf.runDistributed('set-up', {
    stage: async (tx) => {
      await tx`create table users (id int generated always as identity primary key, login text not null unique)`
      await tx`create table audit (what text not null, user_id int not null, job text not null)`
    },
  })

  worker = startProcess(new URL('./worker.mjs', import.meta.url))
  const mailboxMade = provisioning.done('mailboxes gil')
  const jobs = []
  for (const login of Object.keys(cases)) jobs.push(await hf.enqueue(onboardUser, { login }))

  // One of three is provisioned, and the process that went from one to the next is gone.
  await mailboxMade
  await worker.kill()
  console.log("the worker was killed right after gil's mailbox was made")
  worker = startProcess(new URL('./worker.mjs', import.meta.url))

  for (const job of jobs) await hf.jobs.wait(job)
  // A job has failed once nothing of it can commit any more; what it provisioned may be taken back a moment later.
  while ((await hf.listDistributed()).length > 0) await new Promise((resolve) => setTimeout(resolve, 100))
  await worker.stop()

  const result = reconcile({
    logins: Object.keys(cases),
    state: await readState(hf),
    ledger: provisioning.ledger(),
  })
  for (const user of result.users) {
    const there = services.filter((service) => user[service] > 0).join(', ') || 'nothing'
    console.log(
      `${user.login.padEnd(5)} ${cases[user.login].padEnd(48)} ${user.exists ? 'user   ' : 'no user'}  ${there}`,
    )
  }
  console.log(JSON.stringify(result))
  process.exitCode = result.agrees ? 0 : 1
} finally {
  await worker?.kill()
  await hf.close()
  provisioning.close()
  await folder.remove()
}
