import { InvalidConfigError } from '../db/errors.ts'
import type { EventRunner } from '../db/event-runner.ts'
import { insertJob, insertJobIn } from '../db/jobs.ts'
import { encodeJson, type Json } from '../db/json.ts'
import type { JobContext } from './context.ts'
import type { JobDefinition } from './job-definition.ts'
import { parseBySchema } from './schema.ts'

export type EnqueueOptions = {
  /** the caller's transaction on `primary`: the job exists exactly if it commits. Default: a transaction of its own */
  tx?: EventRunner
  /** not before so many milliseconds from now */
  delayMs?: number
  /** 0, the default, comes first, then 1, and so on to 2,097,152 (as in BullMQ) */
  priority?: number
  /** while a job of this name with this id is open (neither completed, failed nor cancelled), that one is returned */
  deduplication?: { readonly id: string }
  correlationId?: string
}

export type Enqueued = { jobId: string }

/** Records a job. Its input is validated and stored as it was given: each run parses it again. */
export async function enqueueJob(
  ctx: JobContext,
  definition: JobDefinition,
  input: unknown,
  options: EnqueueOptions = {},
): Promise<Enqueued> {
  const { tx, delayMs = 0, priority = 0, deduplication, correlationId } = options
  const problems: string[] = []
  if (!Number.isFinite(delayMs) || delayMs < 0) problems.push(`delayMs is 0 or more, not ${delayMs}`)
  if (!Number.isSafeInteger(priority) || priority < 0 || priority > 2_097_152)
    problems.push(`priority is a whole number from 0 (first) to 2097152, not ${priority}`)
  if (deduplication !== undefined && (typeof deduplication.id !== 'string' || deduplication.id === ''))
    problems.push('deduplication.id is a text')
  if (problems.length > 0) throw new InvalidConfigError(problems)
  const json = encodeJson(input ?? null, `input of ${definition.name}`)
  if (definition.input)
    await parseBySchema(definition.input, JSON.parse(json) as Json, `input of ${definition.name}`)
  const job = {
    name: definition.name,
    input: json,
    delayMs: Math.round(delayMs),
    priority,
    deduplication: deduplication?.id ?? null,
    correlationId: correlationId ?? null,
  }
  return { jobId: await (tx ? insertJobIn(tx, job) : insertJob(ctx.databases.primary.sql, job)) }
}
