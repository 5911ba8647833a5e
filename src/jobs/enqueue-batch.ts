import { v7 as uuidv7 } from 'uuid'
import { type BatchJob, findBatchJob, findByParams, insertBatchJob } from '../db/batch-jobs.ts'
import type { Sql } from '../db/databases.ts'
import { BatchNotCompletedError, UnknownJobError } from '../db/errors.ts'
import { type Json, throughJson } from '../db/json.ts'
import type { ScheduledTime } from '../db/schedules.ts'
import type { BatchDefinition } from './batch-definition.ts'
import type { JobContext } from './context.ts'
import { pause } from './pause.ts'
import { parseBySchema } from './schema.ts'

/** `existed`: it is the job that was open already, of a batch that is unique by its parameters. */
export type EnqueuedBatch = { jobId: string; existed: boolean }

export async function enqueueBatchJob(
  ctx: JobContext,
  definition: BatchDefinition,
  params: unknown,
  correlationId: string,
): Promise<EnqueuedBatch> {
  const raw = await rawParams(definition, params)
  return recordBatchJob(ctx.databases.primary.sql, definition, raw, correlationId)
}

/** Records a job whose parameters were parsed; in a transaction, where `sql` is of one. */
export async function recordBatchJob(
  sql: Sql,
  definition: BatchDefinition,
  params: Json,
  correlationId: string,
  scheduled?: ScheduledTime,
): Promise<EnqueuedBatch> {
  const { id, existed } = await insertBatchJob(sql, {
    id: `${definition.name}-${uuidv7()}`,
    batch: definition.name,
    params,
    unique: definition.unique === 'params',
    correlationId,
    ...(scheduled ? { scheduled } : {}),
  })
  return { jobId: id, existed }
}

/** What must be true before something else may begin, as the deployment of code that relies on a migration. */
export async function ensureBatchCompleted(
  ctx: JobContext,
  definition: BatchDefinition,
  params: unknown,
): Promise<BatchJob> {
  const raw = await rawParams(definition, params)
  const job = await findByParams(ctx.databases.primary.sql, definition.name, raw)
  if (job?.status === 'completed') return job
  const { name } = definition
  throw new BatchNotCompletedError(
    job
      ? `${name} is not completed: its job ${job.id} is ${job.status}${job.error === null ? '' : ` (${job.error})`}. \`holdfast batch watch ${job.id}\` shows how far it is`
      : `${name} is not completed: no job of it with these parameters was ever enqueued. \`holdfast batch enqueue ${name}\` does`,
  )
}

/** As JSON carries them, and valid. Stored raw: each run parses them again. */
export async function rawParams(definition: BatchDefinition, params: unknown): Promise<Json> {
  const raw = throughJson(params ?? {}, `params of ${definition.name}`)
  await parseParams(definition, raw)
  return raw
}

export async function parseParams(definition: BatchDefinition, raw: Json): Promise<unknown> {
  if (!definition.params) return raw
  return parseBySchema(definition.params, raw, `params of ${definition.name}`)
}

export type WaitOptions = { pollMs?: number; signal?: AbortSignal }

/** Waits until a job has ended or is paused, or until the signal aborts; returns the job as it is then. */
export async function waitForBatch(
  ctx: JobContext,
  jobId: string,
  { pollMs = 100, signal = new AbortController().signal }: WaitOptions = {},
): Promise<BatchJob> {
  for (;;) {
    const job = await findBatchJob(ctx.databases.primary.sql, jobId)
    if (!job) throw unknownBatchJob(jobId)
    const goesOn = ['queued', 'running', 'pausing', 'cancelling'].includes(job.status)
    if (!goesOn || signal.aborted) return job
    await pause(pollMs, signal)
  }
}

export function unknownBatchJob(jobId: string): UnknownJobError {
  return new UnknownJobError(`no batch job ${jobId} is recorded; \`holdfast batch list\` shows them`)
}
