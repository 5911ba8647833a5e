import { readDatabaseUrl } from '../db/connection-url.ts'
import { messageOf } from '../db/message-of.ts'
import { checkParticipantName } from '../db/transaction-name.ts'
import type { BatchDefinition } from '../jobs/batch-definition.ts'
import type { JobDefinition } from '../jobs/job-definition.ts'
import { defaultQueue, queueOf, queueProblem } from '../jobs/job-queue.ts'
import type { Route } from '../jobs/routes.ts'
import { parseUrls, problemsOfUrls, type RedisUrls } from '../jobs/sinks/redis-urls.ts'
import type { Sink } from '../jobs/sinks/sink.ts'

/** What the shape of a config does not say: what fits together in it, and with the environment. Each problem with its place. */

type Env = Readonly<Record<string, string | undefined>>

type Parts = {
  databases: Readonly<Record<string, string>>
  jobs: readonly JobDefinition[]
  batches: readonly BatchDefinition[]
  queues: Readonly<Record<string, { readonly rateLimit?: object | undefined }>>
  sinks: Readonly<Record<string, Sink>>
  routes?: readonly Route[] | undefined
  redis?: RedisUrls | undefined
}

/** Of what `isSound` says has its shape; what is said of several keys together holds only where each of them has. */
export function problemsOf(
  parts: Parts,
  env: Env,
  urls: Readonly<Record<string, string>>,
  isSound: (key: keyof Parts) => boolean,
): string[] {
  const { databases, jobs, batches, queues, sinks, routes = [] } = parts
  const where = (keys: readonly (keyof Parts)[], found: () => string[]) =>
    keys.every(isSound) ? found() : []
  return [
    ...where(['databases'], () => urlProblems(databases, urls, env)),
    ...where(['redis'], () => redisProblems(parts.redis, env)),
    ...where(['routes', 'sinks'], () => routeProblems(routes, sinks)),
    ...where(['jobs'], () => twiceNamed('jobs', jobs)),
    ...where(['batches'], () => twiceNamed('batches', batches)),
    ...where(['jobs', 'databases'], () =>
      jobs.flatMap(({ participants = [] }, i) =>
        undeclared(`config.jobs.${i}.participants`, participants, urls),
      ),
    ),
    ...where(['batches', 'databases'], () =>
      batches.flatMap(({ participants = [], source }, i) => [
        ...undeclared(`config.batches.${i}.participants`, participants, urls),
        // A source that is made of the parameters is not there yet.
        ...undeclared(
          `config.batches.${i}.source`,
          typeof source === 'object' && source.database ? [source.database] : [],
          urls,
        ),
      ]),
    ),
    ...where(['queues', 'jobs'], () => queueProblems(queues, jobs)),
  ]
}

export function redisUrlsOf(redis: RedisUrls | undefined, env: Env): RedisUrls | undefined {
  const fromEnvironment = present(env.REDIS_URL)
  return redis ?? (fromEnvironment === undefined ? undefined : parseUrls(fromEnvironment))
}

function redisProblems(redis: RedisUrls | undefined, env: Env): string[] {
  const urls = redisUrlsOf(redis, env)
  const from = redis === undefined ? 'REDIS_URL' : 'config.redis'
  return urls === undefined ? [] : problemsOfUrls(urls).map((problem) => `${from}: ${problem}`)
}

function twiceNamed(what: 'jobs' | 'batches', definitions: readonly { readonly name: string }[]): string[] {
  return definitions.flatMap(({ name }, i) =>
    definitions.findIndex((other) => other.name === name) < i
      ? [`config.${what}.${i}: two are named ${name}`]
      : [],
  )
}

function undeclared(
  place: string,
  participants: readonly string[],
  urls: Readonly<Record<string, string>>,
): string[] {
  return participants
    .filter((participant) => !(participant in urls))
    .map((participant) => `${place}: \`databases\` declares no ${participant}`)
}

function routeProblems(routes: readonly Route[], sinks: Readonly<Record<string, Sink>>): string[] {
  return routes.flatMap(({ type, to }, i) =>
    to.flatMap((sink, n) =>
      sink in sinks ? [] : [`config.routes.${i}.to.${n}: ${type} goes to ${sink}, which is no sink`],
    ),
  )
}

function queueProblems(queues: Parts['queues'], jobs: readonly JobDefinition[]): string[] {
  const used = queuesOf(jobs)
  // What finds no room is given back to the queue, and has used up one of the queue's runs.
  const wasteful = jobs.flatMap((job, i) =>
    job.concurrency !== undefined && queues[queueOf(job)]?.rateLimit
      ? [
          `config.jobs.${i}.concurrency: ${job.name} has one of its own on the queue ${queueOf(job)}, which has a rateLimit; give it a queue of its own, with that concurrency`,
        ]
      : [],
  )
  const ofNames = Object.keys(queues).flatMap((name) => {
    const problem = queueProblem(name)
    if (problem) return [`config.queues: a name ${problem}, not ${JSON.stringify(name)}`]
    return used.has(name)
      ? []
      : [`config.queues.${name}: no job runs from it; name it as the \`queue\` of a job`]
  })
  return [...ofNames, ...wasteful]
}

export function queuesOf(jobs: readonly JobDefinition[]): ReadonlySet<string> {
  return new Set([defaultQueue, ...jobs.map(queueOf)])
}

const variable = /^HOLDFAST_DATABASE_([A-Z0-9_]+)_URL$/

export function databaseUrls(declared: Readonly<Record<string, string>>, env: Env): Record<string, string> {
  const urls: Record<string, string> = {
    primary: present(env.DATABASE_URL) ?? 'embedded',
    ...declared,
  }
  for (const name of Object.keys(urls)) {
    const said = present(env[variableOf(name)])
    if (said !== undefined) urls[name] = said
  }
  return urls
}

function variableOf(database: string): string {
  return `HOLDFAST_DATABASE_${database.toUpperCase().replaceAll('-', '_')}_URL`
}

function urlProblems(
  declared: Readonly<Record<string, string>>,
  urls: Readonly<Record<string, string>>,
  env: Env,
): string[] {
  const known = new Set(Object.keys(urls).map(variableOf))
  const unknown = Object.keys(env).filter(
    (name) => variable.test(name) && present(env[name]) !== undefined && !known.has(name),
  )
  return [
    ...Object.keys(urls).flatMap((name) => {
      try {
        checkParticipantName(name)
        return []
      } catch (error) {
        return [`config.databases: ${messageOf(error)}`]
      }
    }),
    ...unknown.map(
      (name) => `${name} names a database that the config does not declare; add it to \`databases\``,
    ),
    ...Object.entries(urls).flatMap(([name, url]) => {
      const problem = url === 'embedded' ? undefined : problemOfUrl(url)
      const from = placeOf(name, declared, env)
      return problem === undefined ? [] : [`${from}: ${problem}`]
    }),
  ]
}

/** Where a database's URL was given. */
function placeOf(name: string, declared: Readonly<Record<string, string>>, env: Env): string {
  if (present(env[variableOf(name)]) !== undefined) return variableOf(name)
  return name === 'primary' && declared.primary === undefined ? 'DATABASE_URL' : `config.databases.${name}`
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

export function present(value: string | undefined): string | undefined {
  return value === undefined || value === '' ? undefined : value
}
