import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { STEPS } from '../../src/db/steps.ts'
import { exampleJobs } from '../support/example-jobs.ts'
import { databasesOf, scenariosOf } from '../support/scenarios.ts'

/** `npm run test:crash`: the crash tests alone; with `--list` it prints what is killed where. */
if (process.argv.includes('--list')) {
  let cases = 0
  for (const step of STEPS) {
    for (const which of scenariosOf[step]) {
      for (const others of databasesOf(which)) {
        cases++
        const databases = Object.keys(others).length + 1
        process.stdout.write(
          `${step.padEnd(24)} ${which.padEnd(20)} ${databases} database${databases > 1 ? 's' : ''}\n`,
        )
      }
    }
  }
  process.stdout.write(`${STEPS.length} steps, ${cases} kills\n\n`)
  for (const [name, { participants, plans }] of Object.entries(exampleJobs)) {
    const size = `${participants.length} database${participants.length > 1 ? 's' : ''}`
    for (const title of Object.keys(plans)) process.stdout.write(`${name.padEnd(24)} ${title}, ${size}\n`)
  }
  process.stdout.write(
    'each at every step that a recorded run comes by, and in every call; one of each also while another process takes over\n\n' +
      'and a relay at every step of a page, for every sink whose server is there\n',
  )
} else {
  const [code] = (await once(
    spawn('npx', ['vitest', 'run', 'test/crash'], { stdio: 'inherit' }),
    'exit',
  )) as [number | null]
  process.exitCode = code ?? 1
}
