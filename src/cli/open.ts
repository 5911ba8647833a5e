import { createClient } from '../db/client.ts'
import { messageOf } from '../db/message-of.ts'
import { resolveConfig } from '../workers/config.ts'
import { type Context, createContext } from '../workers/context.ts'
import { createLog } from '../workers/log.ts'
import { loadHoldfastConfig } from './load-config.ts'

export type Opened = {
  ctx: Context
  /** aborted by SIGINT or SIGTERM; a second one ends the process at once */
  signal: AbortSignal
  /** participants that were left out because they do not answer, with the reason */
  leftOut: Record<string, string>
}

export type OpenOptions = {
  config?: string
  /** a command that only looks goes on without the participants that do not answer */
  onlyLooks?: boolean
}

const answerSeconds = 5

/**
 * Opens what a command works with, and closes it whatever happens. Unless LOG_LEVEL says otherwise only warnings are
 * logged: what the command did, it prints. No command migrates in passing.
 */
export async function withContext<T>(options: OpenOptions, run: (opened: Opened) => Promise<T>): Promise<T> {
  const loaded = await loadHoldfastConfig(options.config)
  const config = resolveConfig({ ...loaded, migrate: false }, process.env)
  const level = (process.env.LOG_LEVEL ?? '') === '' ? 'warn' : config.logLevel
  const leftOut = options.onlyLooks === true ? await unanswering(config.databases) : {}
  for (const name of Object.keys(leftOut)) delete config.databases[name]
  const stop = new AbortController()
  const onSignal = () => stop.abort()
  process.once('SIGINT', onSignal).once('SIGTERM', onSignal)
  try {
    const ctx = await createContext(config, 'producer', createLog(level, 'holdfast'))
    try {
      return await run({ ctx, signal: stop.signal, leftOut })
    } finally {
      await ctx.close()
    }
  } finally {
    process.off('SIGINT', onSignal).off('SIGTERM', onSignal)
    if (stop.signal.aborted) process.exitCode = 1
  }
}

/** The coordinator has to be there, and the embedded server is started. */
async function unanswering(databases: Readonly<Record<string, string>>): Promise<Record<string, string>> {
  const reasons: Record<string, string> = {}
  await Promise.all(
    Object.entries(databases).map(async ([name, url]) => {
      if (name === 'primary' || url === 'embedded') return
      const sql = createClient(url, { max: 1, connect_timeout: answerSeconds })
      try {
        await sql`select 1`
      } catch (error) {
        reasons[name] = messageOf(error)
      } finally {
        await sql.end({ timeout: 0 })
      }
    }),
  )
  return reasons
}

/** Everything else goes to standard error, so the last line of standard output is the JSON. */
export function print(text: string, json: unknown): void {
  process.stderr.write(text)
  if (json !== undefined) process.stdout.write(`${JSON.stringify(json)}\n`)
}
