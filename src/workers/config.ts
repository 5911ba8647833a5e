import { z } from 'zod'
import { InvalidConfigError } from '../db/errors.ts'
import type { Retention } from '../db/retention.ts'
import type { AlertSettings } from '../jobs/alerts.ts'
import type { BatchDefinition } from '../jobs/batch-definition.ts'
import type { JobDefinition } from '../jobs/job-definition.ts'
import type { JobQueue } from '../jobs/job-queue.ts'
import type { Operation } from '../jobs/operations.ts'
import { resolveSchedules, type Schedule, type ScheduleDefinition } from '../jobs/schedule-definition.ts'
import { missedPolicies } from '../jobs/schedules.ts'
import type { RedisUrls } from '../jobs/sinks/redis-urls.ts'
import type { Sink } from '../jobs/sinks/sink.ts'
import { databaseUrls, present, problemsOf, queuesOf, redisUrlsOf } from './config-problems.ts'

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

/** The config, completed, without the keys that have not the shape that they should have; those are `failed`. */
function parseShape(config: HoldfastConfig): {
  data: z.output<typeof shape>
  failed: ReadonlySet<string>
  problems: string[]
} {
  const parsed = shape.safeParse(config)
  if (parsed.success) return { data: parsed.data, failed: new Set(), problems: [] }
  const { issues } = parsed.error
  const problems = issues.map(
    ({ path, message }) => `config${path.map((part) => `.${String(part)}`).join('')}: ${message}`,
  )
  const failed = new Set(
    issues.flatMap((issue) =>
      issue.code === 'unrecognized_keys' && issue.path.length === 0 ? issue.keys : [String(issue.path[0])],
    ),
  )
  const rest = shape.safeParse(
    Object.fromEntries(Object.entries(config ?? {}).filter(([key]) => !failed.has(key))),
  )
  if (!rest.success) throw new InvalidConfigError(problems)
  return { data: rest.data, failed, problems }
}

/** Joins config and environment; throws InvalidConfigError that lists every problem, each with its place. */
export function resolveConfig(
  config: HoldfastConfig,
  env: Readonly<Record<string, string | undefined>>,
): ResolvedConfig {
  const { data, failed, problems } = parseShape(config)
  const { databases, redis, namespace, jobs, queues, batches, schedules, sinks, routes, operations } = data
  const { alerts, retention, migrate, timing, connections } = data
  const isSound = (key: keyof HoldfastConfig) => !failed.has(key)
  const urls = databaseUrls(databases, env)
  problems.push(...problemsOf(data, env, urls, isSound))
  const logLevel = present(env.LOG_LEVEL) ?? 'info'
  if (!logLevels.includes(logLevel)) problems.push(`LOG_LEVEL is one of ${logLevels.join(', ')}`)
  const definitions = { jobs: byName(jobs), batches: byName(batches) }
  const wrongSchedules: string[] = []
  const resolvedSchedules = resolveSchedules(schedules, definitions, wrongSchedules)
  if (isSound('jobs') && isSound('batches')) problems.push(...wrongSchedules)
  if (problems.length > 0) throw new InvalidConfigError(problems)
  return {
    databases: urls,
    redis: redisUrlsOf(redis, env),
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

function allQueues(
  queues: Readonly<Record<string, JobQueueLimits>>,
  jobs: readonly JobDefinition[],
): ReadonlyMap<string, JobQueueLimits> {
  return new Map([...queuesOf(jobs)].map((name) => [name, queues[name] ?? queue.parse({})]))
}
