import { encodeJson, type Json } from '../db/json.ts'
import { messageOf } from '../db/message-of.ts'
import type { ScheduleTarget } from '../db/schedules.ts'
import { type BatchDefinition, definitionName } from './batch-definition.ts'
import { parseParams } from './enqueue-batch.ts'
import { cronProblem, type MissedPolicy, timeZoneProblem } from './schedules.ts'
import { describeIssues } from './schema.ts'

/** What the config says of a schedule. */
export type Schedule = {
  /** what is enqueued at each due time: a batch of the config, or its name */
  readonly batch: string | { readonly name: string }
  /** parameters of the batch; default {} */
  readonly params?: unknown
  /** five fields, or six with seconds first */
  readonly cron: string
  /** default UTC */
  readonly tz?: string
  /** what becomes of due times at which no worker was there; default run-once */
  readonly missed?: MissedPolicy
  /** default: the batch's name */
  readonly name?: string
}

/** With what is left out as undefined. */
type Given = { readonly [K in keyof Schedule]?: Schedule[K] | undefined } & Pick<Schedule, 'batch' | 'cron'>

/** A schedule as it is declared in the database. */
export type ScheduleDefinition = {
  name: string
  cron: string
  tz: string
  missed: MissedPolicy
  target: ScheduleTarget
}

/** Completes what the config says, and adds what is wrong with it to `problems`. */
export function resolveSchedules(
  schedules: readonly Given[],
  batches: readonly BatchDefinition[],
  problems: string[],
): ReadonlyMap<string, ScheduleDefinition> {
  const resolved = new Map<string, ScheduleDefinition>()
  for (const [
    i,
    { batch, params = {}, cron, tz = 'UTC', missed = 'run-once', ...given },
  ] of schedules.entries()) {
    const wrong = (key: string, problem: string | undefined) => {
      if (problem !== undefined) problems.push(`config.schedules.${i}.${key}: ${problem}`)
    }
    const batchName = typeof batch === 'string' ? batch : batch.name
    const name = given.name ?? batchName
    wrong('cron', cronProblem(cron))
    wrong('tz', timeZoneProblem(tz))
    if (!definitionName.test(name))
      wrong(
        'name',
        `${JSON.stringify(name)} has other characters than lower-case letters, digits and -, or over 60`,
      )
    if (resolved.has(name))
      wrong('name', `two schedules are named ${name}; give each schedule of one batch a name of its own`)
    const definition = batches.find((known) => known.name === batchName)
    const known = batches.map((known) => known.name).join(', ') || 'none'
    if (!definition) wrong('batch', `no batch named ${batchName} is configured; known: ${known}`)
    const raw = rawParams(params, (problem) => wrong('params', problem))
    if (definition && raw !== undefined) wrong('params', paramsProblem(definition, raw))
    resolved.set(name, { name, cron, tz, missed, target: { batch: batchName, params: raw ?? {} } })
  }
  return resolved
}

function rawParams(params: unknown, wrong: (problem: string) => void): Json | undefined {
  try {
    return JSON.parse(encodeJson(params, 'it')) as Json
  } catch (error) {
    wrong(messageOf(error))
    return undefined
  }
}

/** By the schema, where it answers at once; what is validated asynchronously is told by a worker that starts. */
function paramsProblem({ params: schema }: BatchDefinition, raw: Json): string | undefined {
  try {
    const result = schema?.['~standard'].validate(raw)
    if (!(result instanceof Promise)) return result?.issues && describeIssues(result.issues)
    result.catch(() => undefined)
    return undefined
  } catch (error) {
    return messageOf(error)
  }
}

/** What is wrong with the parameters of schedules, also what can only be told asynchronously. */
export async function scheduleProblems(
  schedules: Iterable<ScheduleDefinition>,
  batches: ReadonlyMap<string, BatchDefinition>,
): Promise<string[]> {
  const problems: string[] = []
  for (const { name, target } of schedules) {
    const definition = batches.get(target.batch)
    try {
      if (definition) await parseParams(definition, target.params)
    } catch (error) {
      problems.push(`schedule ${name}: ${messageOf(error)}`)
    }
  }
  return problems
}
