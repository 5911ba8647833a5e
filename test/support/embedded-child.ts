/**
 * A process that uses the embedded PostgreSQL, to be killed by tests. One JSON argument says what it does; it answers
 * with one JSON line each time something has happened.
 */
import { readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { setImmediate as nextTurn } from 'node:timers/promises'
import { withGenerationLock } from '../../src/db/embedded/generation-lock.ts'
import { type EmbeddedOptions, startEmbedded } from '../../src/db/embedded/server.ts'

export type ChildOrder = { serve: EmbeddedOptions } | { takeTurns: { folder: string; turns: number } }

export type ChildAnswer =
  | { event: 'ready'; url: string; pid: number }
  | { event: 'released' }
  | { event: 'turn'; turn: number }
  | { event: 'failed'; name: string; message: string }

function answer(line: ChildAnswer): void {
  process.stdout.write(`${JSON.stringify(line)}\n`)
}

/** Serves until a line on stdin tells it to release. */
async function serve(options: EmbeddedOptions): Promise<void> {
  const server = await startEmbedded(options)
  answer({ event: 'ready', url: server.url, pid: server.pid })
  for await (const line of createInterface({ input: process.stdin })) if (line === 'release') break
  await server.release()
  answer({ event: 'released' })
  process.stdin.destroy()
}

/** Each turn makes a file that only one process may make at a time; a killed one leaves the file to the next. */
async function takeTurns({ folder, turns }: { folder: string; turns: number }): Promise<void> {
  for (let turn = 1; turn <= turns; turn += 1) {
    await withGenerationLock(folder, 30_000, async () => {
      const mark = path.join(folder, `inside-${process.pid}`)
      writeFileSync(mark, '', { flag: 'wx' })
      await nextTurn()
      assertAlone(folder)
      rmSync(mark)
    })
    answer({ event: 'turn', turn })
  }
}

function assertAlone(folder: string): void {
  const marks = readdirSync(folder).flatMap((name) => /^inside-(\d+)$/.exec(name)?.slice(1) ?? [])
  const others = marks.map(Number).filter((pid) => pid !== process.pid && isRunning(pid))
  if (others.length > 0) throw new Error(`process ${others.join(', ')} has the lock as well`)
}

function isRunning(pid: number): boolean {
  try {
    return !/\) [ZX] /.test(readFileSync(`/proc/${pid}/stat`, 'utf8'))
  } catch {
    return false
  }
}

async function main(): Promise<void> {
  const order = JSON.parse(process.argv[2] ?? '') as ChildOrder
  await ('serve' in order ? serve(order.serve) : takeTurns(order.takeTurns))
}

main().catch((error: unknown) => {
  const { name, message } = error instanceof Error ? error : new Error(String(error))
  answer({ event: 'failed', name, message })
  process.exitCode = 1
})
