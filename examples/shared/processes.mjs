import { fork } from 'node:child_process'
import { once } from 'node:events'
import { rmSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

/**
 * A working directory of its own for a run. The embedded PostgreSQL lives in `.holdfast/` of the working directory, and
 * processes that share it share the server; the last one to close it stops it.
 */
export async function ownFolder() {
  const before = process.cwd()
  const dir = await mkdtemp(join(tmpdir(), 'holdfast-example-'))
  process.chdir(dir)
  // Interrupted, nobody closes the server; it ends by itself when its folder is gone.
  const interrupted = () => {
    rmSync(dir, { recursive: true, force: true, maxRetries: 5 })
    process.exit(130)
  }
  process.once('SIGINT', interrupted).once('SIGTERM', interrupted)
  return {
    async remove() {
      process.off('SIGINT', interrupted).off('SIGTERM', interrupted)
      process.chdir(before)
      await rm(dir, { recursive: true, force: true })
    },
  }
}

/** A process beside this one, to be stopped as an orchestrator would (SIGTERM), or killed as fate would (SIGKILL). */
export function startProcess(script, args = []) {
  const child = fork(fileURLToPath(script), args, { stdio: ['ignore', 'pipe', 'inherit', 'ipc'] })
  const ended = once(child, 'close')
  let output = ''
  child.stdout.on('data', (chunk) => {
    output += chunk
  })
  const end = async (signal) => {
    if (child.exitCode === null && child.signalCode === null) child.kill(signal)
    await ended
    return output.trim()
  }
  return {
    /** what it sent with `process.send`; fails when it ends before */
    async message() {
      const [value] = await Promise.race([
        once(child, 'message'),
        ended.then(([code, signal]) => Promise.reject(new Error(`${script} ended with ${signal ?? code}`))),
      ])
      return value
    },
    /** waits for its own end; returns what it printed */
    async result() {
      const [code] = await ended
      if (code !== 0) throw new Error(`${script} ended with ${code}`)
      return output.trim()
    },
    /** both return what it had printed */
    kill: () => end('SIGKILL'),
    stop: () => end('SIGTERM'),
  }
}

/** In such a process: says how far it is, and goes no further. It waits to be killed, or for the end of its parent. */
export async function waitToBeKilled(message) {
  process.once('disconnect', () => process.exit())
  process.send(message)
  await new Promise(() => undefined)
}

/** Keeps an opened Holdfast working until this process is to stop; a parent that is gone counts as well. */
export async function workUntilStopped(hf) {
  const stop = () => hf.close().finally(() => process.exit())
  process.once('SIGTERM', stop)
  process.once('disconnect', stop)
  await hf.start()
}
