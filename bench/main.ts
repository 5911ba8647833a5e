import { spawnSync } from 'node:child_process'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { compileProcesses } from '../test/support/compiled.ts'

/**
 * Measures what users run: JavaScript as the compiler writes it. A loader that compiles on the fly adds work of its own to
 * each closure that is made, several percent of a short transaction.
 */
const compiled = await compileProcesses()
try {
  const benches = join(compiled.dir, 'bench/run-benches.js')
  const cwd = fileURLToPath(new URL('..', import.meta.url))
  const { status } = spawnSync(process.execPath, [benches, ...process.argv.slice(2)], {
    stdio: 'inherit',
    cwd,
    env: { LOG_LEVEL: 'error', ...process.env },
  })
  process.exitCode = status ?? 1
} finally {
  await compiled.remove()
}
