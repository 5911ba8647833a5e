import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'

/** What to do where it is missing; the PostgreSQL that Holdfast brings is the server alone. */
const missing =
  'psql is not there: install the PostgreSQL client (Debian: apt-get install postgresql-client; macOS: brew install libpq; Windows: the PostgreSQL installer) and put it on the PATH'

/** Undefined where there is a psql to be run, otherwise what to do. */
export async function whyNoPsql() {
  const child = spawn('psql', ['--version'], { stdio: 'ignore' })
  return once(child, 'close').then(
    ([code]) => (code === 0 ? undefined : missing),
    () => missing,
  )
}

/**
 * Runs a script of this folder by psql: `psql -X -q -At -f SCRIPT -v NAME=VALUE …`. The connection is in the environment, since
 * everybody on the machine can read a command line.
 */
export function startPsql(url, script, variables = {}, { login, input } = {}) {
  const { hostname, port, pathname, username, password } = new URL(url)
  const connection = {
    PGHOST: hostname,
    PGPORT: port,
    PGDATABASE: pathname.slice(1),
    PGUSER: login?.user ?? decodeURIComponent(username),
    PGPASSWORD: login?.password ?? decodeURIComponent(password),
  }
  const set = Object.entries(variables).flatMap(([name, value]) => ['-v', `${name}=${value}`])
  const file = fileURLToPath(new URL(script, import.meta.url))
  const child = spawn('psql', ['-X', '-q', '-At', '-f', file, ...set], {
    env: { ...process.env, ...connection },
    stdio: 'pipe',
  })
  let output = ''
  let errors = ''
  child.stdout.setEncoding('utf8').on('data', (text) => {
    output += text
  })
  child.stderr.setEncoding('utf8').on('data', (text) => {
    errors += text
  })
  // A script that fails does not read its input.
  child.stdin.on('error', () => undefined)
  if (input !== undefined) child.stdin.end(input)
  const ended = once(child, 'close')
  return {
    /** Resolves at the end to the exit code (3: the script has failed), what it printed, and the message of its error. */
    async result() {
      const [code] = await ended
      return { code, output: output.trim(), error: /ERROR: +(.*)/.exec(errors)?.[1] ?? errors.trim() }
    },
    /** Resolves when it asks; fails when it ends before. */
    async asks(question) {
      while (!output.includes(question))
        await Promise.race([
          once(child.stdout, 'data'),
          ended.then(() => Promise.reject(new Error(`psql ended without asking: ${errors}`))),
        ])
    },
    async kill() {
      child.kill('SIGKILL')
      await ended
    },
  }
}
