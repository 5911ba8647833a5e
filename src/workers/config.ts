import { z } from 'zod'
import { readDatabaseUrl } from '../db/connection-url.ts'
import { InvalidConfigError } from '../db/errors.ts'
import { messageOf } from '../db/message-of.ts'
import type { Retention } from '../db/retention.ts'
import { checkParticipantName } from '../db/transaction-name.ts'
import type { AlertSettings } from '../jobs/alerts.ts'
import type { BatchDefinition } from '../jobs/batch-definition.ts'
import type { JobDefinition } from '../jobs/job-definition.ts'
import { defaultQueue, type JobQueue, queueOf, queueProblem } from '../jobs/job-queue.ts'
import type { Operation } from '../jobs/operations.ts'
import { resolveSchedules, type Schedule, type ScheduleDefinition } from '../jobs/schedule-definition.ts'
import { missedPolicies } from '../jobs/schedules.ts'
import { parseUrls, problemsOfUrls, type RedisUrls } from '../jobs/sinks/redis-urls.ts'
import type { Sink } from '../jobs/sinks/sink.ts'

/** What `holdfast.config.ts` exports and createHoldfast takes. */
export type HoldfastConfig = {
  /**
   * postgres://… by name; `primary` is the coordinator. The value `embedded` stands for a database of the embedded
   * PostgreSQL. Without `primary`: DATABASE_URL, and without that the embedded PostgreSQL.
   */
  readonly databases?: Readonly<Record<string, string>>
  /** redis://… for the queues, or a list of nodes of a Redis Cluster; without it REDIS_URL, and without that BullMQ on the primary database */
  readonly redis?: RedisUrls
  /** a human's name for this installation */
  readonly namespace?: string
  readonly jobs?: readonly JobDefinition[]
  /** limits of the queues that jobs run from, by name; `jobs` is the one of those that name none */
  readonly queues?: Readonly<Record<string, JobQueue>>
  readonly batches?: readonly BatchDefinition[]
  /** what is enqueued again and again, by cron expressions */
  readonly schedules?: readonly Schedule[]
  readonly sinks?: Readonly<Record<string, Sink>>
  /** which events go to which sinks; `*` stands for one segment, `**` for the rest. Without routes: all to all */
  readonly routes?: readonly { readonly type: string; readonly to: readonly string[] }[]
  /** what a crash must be able to find again, by the `operation` of a distributed transaction */
  readonly operations?: Readonly<Record<string, Operation>>
  /** where alerts go besides the log and the metric, and from when on something counts as stuck */
  readonly alerts?: { readonly webhook?: string; readonly stuckAfterMs?: number }
  /**
   * how long ended transactions with their markers (default 30 days), the audit (default 90 days), what `once` has seen
   * (default 30 days) and events that every sink has got (default 7 days) are kept; what `once` has seen must be kept
   * longer than the time after which an event can come again
   */
  readonly retention?: Partial<Retention>
  /** bring the schema up to date when starting; without it `holdfast migrate` does */
  readonly migrate?: boolean
  readonly timing?: Partial<Timing>
  readonly connections?: Partial<Connections>
}

/** How much this process does at once beside its jobs; docs/operations.md tells how many connections it opens for all. */
export type Connections = {
  /** idempotent calls whose work runs; default 10. Further ones wait, for 10 s at the most */
  idempotent: number
  /** transactions at once on each database: of beginDistributed until prepared, of runDistributed until ended; default 4 */
  distributed: number
}

/** All in milliseconds. */
export type Timing = {
  /** how long a process that says nothing counts as alive; default 15,000 */
  leaseMs: number
  /** how long a queue job's lock lasts without renewal; default 30,000 */
  lockMs: number
  /** how often the outbox is looked at when nothing wakes it; default 250 */
  pollMs: number
  /** how often recovery looks; default 60,000 */
  recoverEveryMs: number
  /** how often unfinished work and schedules are asserted in the queues; default 1,000 */
  assertEveryMs: number
  /** how long a stopping worker may finish what it runs; default 30,000 */
  drainMs: number
}

export type ResolvedConfig = {
  databases: Record<string, string>
  redis: RedisUrls | undefined
  namespace: string | undefined
  jobs: ReadonlyMap<string, JobDefinition>
  /** each queue that a job may be on, with its limits */
  queues: ReadonlyMap<string, JobQueueLimits>
  batches: ReadonlyMap<string, BatchDefinition>
  schedules: ReadonlyMap<string, ScheduleDefinition>
  sinks: ReadonlyMap<string, Sink>
  routes: readonly { readonly type: string; readonly to: readonly string[] }[] | undefined
  operations: ReadonlyMap<string, Operation>
  alerts: AlertSettings
  retention: Retention
  migrate: boolean
  timing: Timing
  connections: Connections
  logLevel: string
}

type ParticipantOf<J> = J extends { readonly participants: readonly (infer P)[] } ? P : never

/** The databases that a job of the config takes part on and that the config does not declare. */
type Undeclared<C> = C extends { jobs: readonly (infer J)[] }
  ? Exclude<ParticipantOf<J>, 'primary' | (C extends { databases: infer D } ? keyof D : never)>
  : never

type NameOf<D> = D extends { readonly name: infer N } ? N : D
type NamesIn<C, K extends string> = C extends { readonly [P in K]: readonly (infer D)[] } ? NameOf<D> : never

/** The names that a schedule of the config is for and that the config does not have; of names known to be texts alone: none. */
type Unscheduled<C> = C extends { schedules: readonly (infer S)[] }
  ? S extends { readonly job: infer J }
    ? Missing<NameOf<J>, NamesIn<C, 'jobs'>>
    : S extends { readonly batch: infer B }
      ? Missing<NameOf<B>, NamesIn<C, 'batches'>>
      : never
  : never
type Missing<N, Known> = string extends N ? never : Exclude<N, Known>

/** What a config must not be: jobs on databases that it does not declare, schedules of what it does not have. */
export type Checked<C> = ([Undeclared<C>] extends [never]
  ? unknown
  : { jobs: `\`databases\` declares no ${Undeclared<C> & string}` }) &
  ([Unscheduled<C>] extends [never]
    ? unknown
    : { schedules: `neither \`jobs\` nor \`batches\` has ${Unscheduled<C> & string}` })

/** Keeps the literal types of a config, so that names in it are checked where they are used. */
export function defineConfig<const C extends HoldfastConfig>(config: C & Checked<C>): C {
  return config
}

const ms = z.int().positive()

const timing = z.strictObject({
  leaseMs: ms.default(15_000),
  lockMs: ms.default(30_000),
  pollMs: ms.default(250),
  recoverEveryMs: ms.default(60_000),
  assertEveryMs: ms.default(1_000),
  drainMs: ms.default(30_000),
})

const definition = z.custom<BatchDefinition>(
  (value) => typeof value === 'object' && value !== null && 'process' in value && 'source' in value,
  'is not a batch definition; make it with defineBatch',
)

const named = (otherwise: string) =>
  z.union([z.string(), z.looseObject({ name: z.string() })], otherwise).optional()

// Which of them it has, and what they are, is checked by resolveSchedules.
const schedule = z.strictObject({
  batch: named('is not a batch definition or its name'),
  params: z.unknown().optional(),
  job: named('is not a job definition or its name'),
  input: z.unknown().optional(),
  cron: z.string(),
  tz: z.string().optional(),
  missed: z.enum(missedPolicies).optional(),
  name: z.string().optional(),
})

const job = z.custom<JobDefinition>(
  (value) => typeof value === 'object' && value !== null && 'stage' in value && 'participants' in value,
  'is not a job definition; make it with defineJob',
)

const count = z.int().positive()

const queue = z.strictObject({
  concurrency: count.default(4),
  globalConcurrency: count.optional(),
  rateLimit: z.strictObject({ max: count, durationMs: ms }).optional(),
})

/** As JobQueue, completed. */
type JobQueueLimits = z.output<typeof queue>

const sink = z.custom<Sink>(
  (value) =>
    typeof value === 'object' && value !== null && 'open' in value && typeof value.open === 'function',
  'is not a sink; make it with one of holdfast/sinks/… or defineSink',
)

const operation = z.strictObject({
  compensate: z
    .custom<NonNullable<Operation['compensate']>>((value) => typeof value === 'function', 'is not a function')
    .optional(),
})

const dayMs = 24 * 60 * 60 * 1000

const shape = z.strictObject({
  databases: z.record(z.string(), z.string()).default({}),
  redis: z.union([z.string(), z.array(z.string())]).optional(),
  namespace: z
    .string()
    .regex(/^[a-z0-9][a-z0-9-]{0,30}$/)
    .optional(),
  jobs: z.array(job).default([]),
  queues: z.record(z.string(), queue).default({}),
  batches: z.array(definition).default([]),
  schedules: z.array(schedule).default([]),
  sinks: z.record(z.string().regex(/^[a-z][a-z0-9-]{0,39}$/), sink).default({}),
  routes: z.array(z.strictObject({ type: z.string().min(1), to: z.array(z.string()) })).optional(),
  operations: z.record(z.string().regex(/^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$/), operation).default({}),
  alerts: z
    .strictObject({ webhook: z.url().optional(), stuckAfterMs: ms.default(10 * 60 * 1000) })
    .prefault({}),
  retention: z
    .strictObject({
      transactionsMs: ms.default(30 * dayMs),
      eventsMs: ms.default(90 * dayMs),
      seenMs: ms.default(30 * dayMs),
      outboxMs: ms.default(7 * dayMs),
    })
    .prefault({}),
  migrate: z.boolean().default(false),
  timing: timing.prefault({}),
  connections: z.strictObject({ idempotent: count.default(10), distributed: count.default(4) }).prefault({}),
})

const logLevels = ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent']

/** Joins config and environment; throws InvalidConfigError that lists every problem. */
export function resolveConfig(
  config: HoldfastConfig,
  env: Readonly<Record<string, string | undefined>>,
): ResolvedConfig {
  const parsed = shape.safeParse(config)
  if (!parsed.success) {
    throw new InvalidConfigError(
      parsed.error.issues.map(
        (issue) => `config${issue.path.map((p) => `.${String(p)}`).join('')}: ${issue.message}`,
      ),
    )
  }
  const {
    databases,
    redis,
    namespace,
    jobs,
    queues,
    batches,
    schedules,
    sinks,
    routes,
    operations,
    alerts,
    retention,
    migrate,
    timing,
    connections,
  } = parsed.data
  const problems: string[] = []
  const urls = databaseUrls(databases, env, problems)
  const fromEnvironment = present(env.REDIS_URL)
  const redisUrls = redis ?? (fromEnvironment === undefined ? undefined : parseUrls(fromEnvironment))
  if (redisUrls !== undefined)
    problems.push(...problemsOfUrls(redisUrls).map((problem) => `redis: ${problem}`))
  const logLevel = present(env.LOG_LEVEL) ?? 'info'
  if (!logLevels.includes(logLevel)) problems.push(`LOG_LEVEL is one of ${logLevels.join(', ')}`)
  for (const route of routes ?? []) {
    for (const to of route.to) {
      if (!(to in sinks))
        problems.push(`routes: ${route.type} goes to the sink ${to}, which is not configured`)
    }
  }
  const definitions = { jobs: byName(jobs), batches: byName(batches) }
  const resolvedSchedules = resolveSchedules(schedules, definitions, problems)
  problems.push(...definitionProblems('jobs', jobs, urls), ...queueProblems(queues, jobs))
  problems.push(
    ...definitionProblems(
      'batches',
      batches.map(({ name, participants = [], source }) => ({
        name,
        // A source that is made of the parameters is not there yet.
        participants: [
          ...participants,
          ...(typeof source === 'object' && source.database ? [source.database] : []),
        ],
      })),
      urls,
    ),
  )
  if (problems.length > 0) throw new InvalidConfigError(problems)
  return {
    databases: urls,
    redis: redisUrls,
    namespace: namespace ?? present(env.HOLDFAST_NAMESPACE),
    ...definitions,
    queues: allQueues(queues, jobs),
    schedules: resolvedSchedules,
    sinks: new Map(Object.entries(sinks)),
    routes,
    operations: new Map(
      Object.entries(operations).map(([name, { compensate }]) => [name, compensate ? { compensate } : {}]),
    ),
    alerts: { webhook: alerts.webhook, stuckAfterMs: alerts.stuckAfterMs },
    retention,
    migrate,
    timing,
    connections,
    logLevel,
  }
}

function byName<D extends { readonly name: string }>(definitions: readonly D[]): ReadonlyMap<string, D> {
  return new Map(definitions.map((definition) => [definition.name, definition]))
}

function definitionProblems(
  what: 'jobs' | 'batches',
  definitions: readonly { readonly name: string; readonly participants?: readonly string[] }[],
  urls: Readonly<Record<string, string>>,
): string[] {
  return definitions.flatMap(({ name, participants = [] }, i) => [
    ...(definitions.findIndex((other) => other.name === name) < i ? [`${what}: two are named ${name}`] : []),
    ...participants
      .filter((participant) => !(participant in urls))
      .map(
        (participant) =>
          `${what}: ${name} takes part on ${participant}, which \`databases\` does not declare`,
      ),
  ])
}

function queueProblems(
  queues: Readonly<Record<string, JobQueueLimits>>,
  jobs: readonly JobDefinition[],
): string[] {
  const used = queuesOf(jobs)
  // What finds no room is given back to the queue, and has used up one of the queue's runs.
  const wasteful = jobs.filter((job) => job.concurrency !== undefined && queues[queueOf(job)]?.rateLimit)
  const problems = wasteful.map(
    (job) =>
      `jobs: ${job.name} has a concurrency of its own on the queue ${queueOf(job)}, which has a rateLimit; give it a queue of its own, with that concurrency`,
  )
  const ofNames = Object.keys(queues).flatMap((name) => {
    const problem = queueProblem(name)
    if (problem) return [`queues: a name ${problem}, not ${JSON.stringify(name)}`]
    return used.has(name) ? [] : [`queues: no job runs from ${name}; name it as the \`queue\` of a job`]
  })
  return [...ofNames, ...problems]
}

function allQueues(
  queues: Readonly<Record<string, JobQueueLimits>>,
  jobs: readonly JobDefinition[],
): ReadonlyMap<string, JobQueueLimits> {
  return new Map([...queuesOf(jobs)].map((name) => [name, queues[name] ?? queue.parse({})]))
}

function queuesOf(jobs: readonly JobDefinition[]): ReadonlySet<string> {
  return new Set([defaultQueue, ...jobs.map(queueOf)])
}

function databaseUrls(
  declared: Readonly<Record<string, string>>,
  env: Readonly<Record<string, string | undefined>>,
  problems: string[],
): Record<string, string> {
  const urls: Record<string, string> = {
    primary: declared.primary ?? present(env.DATABASE_URL) ?? 'embedded',
  }
  for (const [name, url] of Object.entries(declared)) if (name !== 'primary') urls[name] = url
  for (const name of Object.keys(urls)) {
    try {
      checkParticipantName(name)
    } catch (error) {
      problems.push(`databases: ${messageOf(error)}`)
    }
  }
  for (const [variable, value] of Object.entries(env)) {
    const match = /^HOLDFAST_DATABASE_([A-Z0-9_]+)_URL$/.exec(variable)
    if (!match || present(value) === undefined) continue
    const name = Object.keys(urls).find((n) => n.toUpperCase().replaceAll('-', '_') === match[1])
    if (name === undefined)
      problems.push(`${variable} names a database that the config does not declare; add it to \`databases\``)
    else urls[name] = value ?? ''
  }
  for (const [name, url] of Object.entries(urls)) {
    const problem = url === 'embedded' ? undefined : problemOfUrl(url)
    const from = name === 'primary' && declared.primary === undefined ? 'DATABASE_URL' : `databases.${name}`
    if (problem !== undefined) problems.push(`${from}: ${problem}`)
  }
  return urls
}

/** None of it repeats the URL, which may hold a password. */
function problemOfUrl(url: string): string | undefined {
  if (!/^postgres(ql)?:\/\//.test(url)) return 'a URL starts with postgres:// (or the value is embedded)'
  try {
    readDatabaseUrl(url)
    return undefined
  } catch (error) {
    return messageOf(error)
  }
}

function present(value: string | undefined): string | undefined {
  return value === undefined || value === '' ? undefined : value
}
