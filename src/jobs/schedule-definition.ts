import type { StandardSchemaV1 } from '@standard-schema/spec'
import { type Json, throughJson } from '../db/json.ts'
import { messageOf } from '../db/message-of.ts'
import type { ScheduleTarget } from '../db/schedules.ts'
import { type BatchDefinition, definitionName } from './batch-definition.ts'
import { parseParams } from './enqueue-batch.ts'
import { parseInput } from './enqueue-job.ts'
import type { JobDefinition } from './job-definition.ts'
import { cronProblem, type MissedPolicy, timeZoneProblem } from './schedules.ts'
import { describeIssues } from './schema.ts'

/** A definition of the config, or its name. */
type Named = string | { readonly name: string }

type BatchTarget = {
  /** what is enqueued at each due time: a batch of the config, or its name */
  readonly batch: Named
  /** parameters of the batch; default {} */
  readonly params?: unknown
  readonly job?: never
  readonly input?: never
}

type JobTarget = {
  /** what is enqueued at each due time: a job of the config, or its name */
  readonly job: Named
  /** input of the job; default null */
  readonly input?: unknown
  readonly batch?: never
  readonly params?: never
}

/** What the config says of a schedule: what is enqueued, a batch or a job, and when. */
export type Schedule = (BatchTarget | JobTarget) & {
  /** five fields, or six with seconds first */
  readonly cron: string
  /** default UTC */
  readonly tz?: string
  /** what becomes of due times at which no worker was there; default run-once */
  readonly missed?: MissedPolicy
  /** default: the batch's or the job's name */
  readonly name?: string
}

type ScheduleKey = keyof BatchTarget | 'cron' | 'tz' | 'missed' | 'name'

/** Of the right shape, with what is left out as undefined; nothing says yet that it has one target. */
type Given = {
  readonly batch?: Named | undefined
  readonly params?: unknown
  readonly job?: Named | undefined
  readonly input?: unknown
  readonly cron: string
  readonly tz?: string | undefined
  readonly missed?: MissedPolicy | undefined
  readonly name?: string | undefined
}

/** What schedules can enqueue, by name. */
export type Definitions = {
  readonly batches: ReadonlyMap<string, BatchDefinition>
  readonly jobs: ReadonlyMap<string, JobDefinition>
}

/** A schedule as it is declared in the database. */
export type ScheduleDefinition = {
  name: string
  cron: string
  tz: string
  missed: MissedPolicy
  target: ScheduleTarget
}

/** Without a key: of the schedule as a whole. */
type Wrong = (key: ScheduleKey | undefined, problem: string | undefined) => void

/** Completes what the config says, and adds what is wrong with it to `problems`. */
export function resolveSchedules(
  schedules: readonly Given[],
  definitions: Definitions,
  problems: string[],
): ReadonlyMap<string, ScheduleDefinition> {
  const resolved = new Map<string, ScheduleDefinition>()
  for (const [i, given] of schedules.entries()) {
    const { cron, tz = 'UTC', missed = 'run-once' } = given
    const wrong: Wrong = (key, problem) => {
      const place = key === undefined ? '' : `.${key}`
      if (problem !== undefined) problems.push(`config.schedules.${i}${place}: ${problem}`)
    }
    const target = resolveTarget(given, definitions, wrong)
    const name = given.name ?? nameOf(given.batch ?? given.job)
    wrong('cron', cronProblem(cron))
    wrong('tz', timeZoneProblem(tz))
    if (name === undefined) continue
    if (!definitionName.test(name))
      wrong(
        'name',
        `${JSON.stringify(name)} has other characters than lower-case letters, digits and -, or over 60`,
      )
    if (resolved.has(name))
      wrong('name', `two schedules are named ${name}; give each schedule a name of its own`)
    if (target) resolved.set(name, { name, cron, tz, missed, target })
  }
  return resolved
}

function nameOf(named: Named | undefined): string | undefined {
  return typeof named === 'object' ? named.name : named
}

/** Undefined where it is not one alone. */
function resolveTarget(
  given: Given,
  { batches, jobs }: Definitions,
  wrong: Wrong,
): ScheduleTarget | undefined {
  const [batch, job] = [nameOf(given.batch), nameOf(given.job)]
  const params = batch === undefined ? undefined : payload('batch', batch, batches, given.params ?? {}, wrong)
  const input = job === undefined ? undefined : payload('job', job, jobs, given.input ?? null, wrong)
  if (batch !== undefined && job !== undefined) {
    wrong(undefined, 'it has a batch and a job; make two schedules of it')
    return undefined
  }
  if (batch !== undefined) {
    if (given.input !== undefined) wrong('input', 'a batch has params; input is of a job')
    return { batch, params: params ?? {} }
  }
  if (job !== undefined) {
    if (given.params !== undefined) wrong('params', 'a job has input; params are of a batch')
    return { job, input: input ?? null }
  }
  wrong(undefined, 'it has neither a batch nor a job; one of them says what is enqueued')
  return undefined
}

/** As JSON carries it. What is wrong with it, or with the name, is added to the problems. */
function payload(
  kind: 'batch' | 'job',
  name: string,
  known: ReadonlyMap<string, { readonly params?: StandardSchemaV1; readonly input?: StandardSchemaV1 }>,
  value: unknown,
  wrong: Wrong,
): Json | undefined {
  const key = kind === 'batch' ? 'params' : 'input'
  const definition = known.get(name)
  const names = [...known.keys()].join(', ') || 'none'
  if (!definition) wrong(kind, `no ${kind} named ${name} is configured; known: ${names}`)
  try {
    const raw = throughJson(value, 'it')
    wrong(key, schemaProblem(definition?.[key], raw))
    return raw
  } catch (error) {
    wrong(key, messageOf(error))
    return undefined
  }
}

/** By the schema, where it answers at once; what is validated asynchronously is told by a worker that starts. */
function schemaProblem(schema: StandardSchemaV1 | undefined, raw: Json): string | undefined {
  const result = schema?.['~standard'].validate(raw)
  if (!(result instanceof Promise)) return result?.issues && describeIssues(result.issues)
  result.catch(() => undefined)
  return undefined
}

/** What is wrong with the parameters and inputs of schedules, also what can only be told asynchronously. */
export async function scheduleProblems(
  schedules: Iterable<ScheduleDefinition>,
  { batches, jobs }: Definitions,
): Promise<string[]> {
  const problems: string[] = []
  for (const { name, target } of schedules) {
    try {
      if ('job' in target) {
        const job = jobs.get(target.job)
        if (job) await parseInput(job, target.input)
      } else {
        const batch = batches.get(target.batch)
        if (batch) await parseParams(batch, target.params)
      }
    } catch (error) {
      problems.push(`schedule ${name}: ${messageOf(error)}`)
    }
  }
  return problems
}
