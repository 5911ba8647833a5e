import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { inject, onTestFinished } from 'vitest'

const folder = join(inject('compiled'), 'examples')

/** A limit against hanging: an example starts several processes, each of which loads everything. */
export const exampleLimitMs = 400_000

type Example = { code: number | null; stdout: string; last: Record<string, unknown> }

/**
 * Runs an example as a user does, on an embedded server of its own; `last` is the last line of its output. `env` goes before
 * what this process has in its environment.
 */
export async function runExample(script: string, env: Record<string, string> = {}): Promise<Example> {
  const inherited = Object.entries(process.env).filter(
    ([name]) => !/^(DATABASE_URL|REDIS_URL|HOLDFAST_.*)$/.test(name),
  )
  const child = spawn(process.execPath, [join(folder, script)], {
    env: { ...Object.fromEntries(inherited), ...env },
  })
  // The processes that it starts end with it: they hear that it is gone.
  onTestFinished(() => {
    child.kill('SIGKILL')
  })
  let stdout = ''
  let stderr = ''
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    stdout += text
  })
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    stderr += text
  })
  const [code] = (await once(child, 'close')) as [number | null]
  const last = stdout.trimEnd().split('\n').at(-1) ?? ''
  if (!last.startsWith('{')) throw new Error(`${script} ended with ${code}:\n${stdout}\n${stderr}`)
  return { code, stdout, last: JSON.parse(last) as Record<string, unknown> }
}

/** A module of an example; it is JavaScript, so the caller says what it exports. */
export async function importExample<T>(module: string): Promise<T> {
  return (await import(pathToFileURL(join(folder, module)).href)) as T
}

/** What examples/README.md prints as the output of an example, but for its last line, which is shortened there. */
export function outputInReadme(example: string): string {
  const readme = readFileSync(join(folder, 'README.md'), 'utf8')
  const [, section = ''] = readme.split(`## ${example}\n`)
  const [, block = ''] = section.split('```\n')
  return block.slice(0, block.lastIndexOf('{'))
}
