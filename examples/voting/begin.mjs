// node begin.mjs PERSON…: stages the hiring of each and leaves the decision to two services.
import { createHoldfast } from 'holdfast'
import config from './holdfast.config.mjs'

const hf = await createHoldfast(config)
const tokens = {}
for (const person of process.argv.slice(2)) {
  const begun = await hf.beginDistributed(
    `hire-${person}`,
    async (tx) => {
      await tx`insert into employees (name) values (${person})`
    },
    // Nobody has to be there for it: past the deadline any worker or `holdfast tx recover` rolls it back.
    { awaits: ['email', 'payroll'], deadlineMs: 10 * 60 * 1000 },
  )
  tokens[person] = begun.tokens
}
// A token lets its holder vote for one service. It is kept nowhere, so hand it over now.
process.send({ tokens })
// Prepared, named and owned by nobody: this process has nothing more to do, and waits to be killed.
process.once('disconnect', () => process.exit())
