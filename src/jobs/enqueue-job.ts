import type { Sql } from '../db/databases.ts'
import { InvalidConfigError } from '../db/errors.ts'
import type { EventRunner } from '../db/event-runner.ts'
import { insertJob, insertJobIn, markScheduled, type NewJob } from '../db/jobs.ts'
import { encodeJson, type Json } from '../db/json.ts'
import type { ScheduledTime } from '../db/schedules.ts'
import type { Tx } from '../db/tx.ts'
import type { JobContext } from './context.ts'
import type { JobDefinition, WithResult } from './job-definition.ts'
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

export type Enqueued<Result = Json> = { jobId: string } & WithResult<Result>

/** Records a job. Its input is validated and stored as it was given: each run parses it again. */
export async function enqueueJob(
  ctx: JobContext,
  definition: JobDefinition,
  input: unknown,
  options: EnqueueOptions = {},
): Promise<Enqueued> {
  return insert(ctx.databases.primary.sql, await checkedJob(definition, input, options), options)
}

/** The row of a job whose input fits. Throws InvalidConfigError and InvalidPayloadError. */
export async function checkedJob(
  definition: JobDefinition,
  input: unknown,
  options: EnqueueOptions,
): Promise<NewJob> {
  const job = newJob(definition.name, input, options)
  await parseInput(definition, JSON.parse(job.input) as Json)
  return job
}

/** The config's own definition of a job, or of its name. Throws InvalidConfigError where it has none. */
export function definitionOf(
  definitions: ReadonlyMap<string, JobDefinition>,
  job: string | { readonly name: string },
): JobDefinition {
  const name = typeof job === 'string' ? job : job.name
  const definition = definitions.get(name)
  if (definition) return definition
  const known = [...definitions.keys()].join(', ') || 'none'
  throw new InvalidConfigError([`no job named ${JSON.stringify(name)} is configured; known: ${known}`])
}

/** The same by whoever knows the name alone: each run parses the input. */
export async function enqueueUnchecked(
  sql: Sql,
  name: string,
  input: unknown,
  options: EnqueueOptions = {},
): Promise<Enqueued> {
  return insert(sql, newJob(name, input, options), options)
}

async function insert(sql: Sql, job: NewJob, { tx }: EnqueueOptions): Promise<Enqueued> {
  return { jobId: await (tx ? insertJobIn(tx, job) : insertJob(sql, job)) }
}

/** Records, in the transaction that moves its schedule, a job whose input was parsed. */
export async function recordScheduledJob(
  tx: Tx,
  definition: JobDefinition,
  input: Json,
  scheduled: ScheduledTime,
): Promise<Enqueued> {
  const jobId = await insertJob(tx, newJob(definition.name, input))
  await markScheduled(tx, jobId, scheduled)
  return { jobId }
}

/** Throws InvalidPayloadError. Without a schema, what is JSON fits. */
export function parseInput(definition: JobDefinition, raw: Json): Promise<unknown> | Json {
  return definition.input ? parseBySchema(definition.input, raw, `input of ${definition.name}`) : raw
}

const optionNames: ReadonlySet<string> = new Set<keyof EnqueueOptions>([
  'tx',
  'delayMs',
  'priority',
  'deduplication',
  'correlationId',
])

/** The row of a job. Throws InvalidConfigError for options that are wrong, InvalidPayloadError for what is not JSON. */
function newJob(name: string, input: unknown, options: EnqueueOptions = {}): NewJob {
  const { delayMs = 0, priority = 0, deduplication, correlationId } = options
  const problems = Object.keys(options)
    .filter((option) => !optionNames.has(option))
    .map((option) => `enqueue has no option ${option}; it has ${[...optionNames].join(', ')}`)
  if (!Number.isFinite(delayMs) || delayMs < 0) problems.push(`delayMs is 0 or more, not ${delayMs}`)
  if (!Number.isSafeInteger(priority) || priority < 0 || priority > 2_097_152)
    problems.push(`priority is a whole number from 0 (first) to 2097152, not ${priority}`)
  if (deduplication !== undefined && (typeof deduplication.id !== 'string' || deduplication.id === ''))
    problems.push('deduplication.id is a text')
  if (problems.length > 0) throw new InvalidConfigError(problems)
  return {
    name,
    input: encodeJson(input ?? null, `input of ${name}`),
    delayMs: Math.round(delayMs),
    priority,
    deduplication: deduplication?.id ?? null,
    correlationId: correlationId ?? null,
  }
}
