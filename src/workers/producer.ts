import { z } from 'zod'
import { Databases } from '../db/databases.ts'
import { InvalidConfigError, SchemaOutdatedError } from '../db/errors.ts'
import type { EventRunner } from '../db/event-runner.ts'
import { recordSeen } from '../db/inbox-seen.ts'
import { appendEvents, type NewEvent } from '../db/outbox.ts'
import { SQLSTATE, sqlstateOf } from '../db/sqlstate.ts'
import { type Enqueued, type EnqueueOptions, enqueueUnchecked } from '../jobs/enqueue-job.ts'
import type { HoldfastConfig } from './config.ts'
import type { InputFor, JobName } from './holdfast.ts'

export type ProducerOptions = {
  /**
   * postgres://…, the primary database of the installation. Default HOLDFAST_DATABASE_PRIMARY_URL, then DATABASE_URL. It
   * is connected to by the first `enqueue` without `tx`, and by nothing else.
   */
  readonly databases?: { readonly primary?: string }
}

/**
 * Enqueues and publishes for the workers of another process, whose config it knows as a type alone: no definition is
 * loaded, so the code of the jobs need not be here. Each call belongs to a transaction of the caller's on the primary
 * database: a client of node-postgres, a postgres.js transaction, or anything else with `query(text, values)`.
 *
 * Nothing is checked when it is made. A database without the schema is told by the first call (HOLDFAST_SCHEMA_OUTDATED).
 */
export interface Producer<C extends HoldfastConfig = HoldfastConfig> {
  /**
   * Enqueues a job by its name; with `tx` it exists exactly if that commits, without it is recorded by itself. Workers find
   * it within `timing.assertEveryMs`.
   *
   * Name and input are checked by the compiler alone. There is no schema here to validate the input by: each run of the
   * job does, and one whose input does not fit fails at its first run, with the schema's message among its errors
   * (`holdfast job show`). A job that no worker's config has stays queued. Only what is not JSON is refused here
   * (HOLDFAST_INVALID_PAYLOAD).
   */
  enqueue<const N extends JobName<C>>(
    name: N,
    input: InputFor<C, N>,
    options?: EnqueueOptions,
  ): Promise<Enqueued>
  /**
   * Appends events to the outbox; they go out exactly if `tx` commits. Returns their ids. What the sinks take is not known
   * here: an event that is too large for one of them goes to its dead list.
   */
  publish(tx: EventRunner, events: NewEvent | readonly NewEvent[]): Promise<string[]>
  /** As `once` of a Holdfast, in any database that takes part. */
  once(tx: EventRunner, consumer: string, eventId: string): Promise<boolean>
  /** Closes the connections of `enqueue` without `tx`; those that were passed in are the caller's. Idempotent. */
  close(): Promise<void>
}

/**
 * A producer for the jobs of a config, of which the type is enough:
 *
 *     import type config from './holdfast.config.ts'
 *     const producer = createProducer<typeof config>()
 *
 * It opens no worker and takes no lease. Throws HOLDFAST_INVALID_CONFIG when it has no URL.
 */
export function createProducer<C extends HoldfastConfig = HoldfastConfig>(
  options: ProducerOptions = {},
): Producer<C> {
  return new Instance(primaryUrl(options, process.env))
}

class Instance implements Producer {
  readonly #databases: Databases

  constructor(url: string) {
    this.#databases = new Databases({ primary: url }, { queries: 2 })
  }

  enqueue(name: string, input: unknown, options?: EnqueueOptions): Promise<Enqueued> {
    return explained(enqueueUnchecked(this.#databases.primary.sql, name, input, options))
  }

  publish(tx: EventRunner, events: NewEvent | readonly NewEvent[]): Promise<string[]> {
    return explained(appendEvents(tx, events))
  }

  once(tx: EventRunner, consumer: string, eventId: string): Promise<boolean> {
    return explained(recordSeen(tx, consumer, eventId))
  }

  close(): Promise<void> {
    return this.#databases.end()
  }
}

const shape = z.strictObject({ databases: z.strictObject({ primary: z.string().optional() }).optional() })

function primaryUrl(
  options: ProducerOptions,
  { HOLDFAST_DATABASE_PRIMARY_URL, DATABASE_URL }: Readonly<Record<string, string | undefined>>,
): string {
  const { success, error, data } = shape.safeParse(options)
  if (!success)
    throw new InvalidConfigError(error.issues.map(({ path, message }) => `${path.join('.')}: ${message}`))
  // In the order in which a config's primary is found.
  const url = [HOLDFAST_DATABASE_PRIMARY_URL, data.databases?.primary, DATABASE_URL].find(
    (given) => given !== undefined && given !== '',
  )
  if (url === undefined || !/^postgres(ql)?:\/\//.test(url))
    throw new InvalidConfigError([
      'databases.primary: a producer needs the URL of the primary database (postgres://…), here or in DATABASE_URL',
    ])
  return url
}

/** What a call says to a database that Holdfast's schema is not in, or not all of it. */
const notThere: readonly (string | undefined)[] = [
  SQLSTATE.invalidSchemaName,
  SQLSTATE.undefinedFunction,
  SQLSTATE.undefinedTable,
]

async function explained<T>(call: Promise<T>): Promise<T> {
  try {
    return await call
  } catch (error) {
    if (!notThere.includes(sqlstateOf(error))) throw error
    throw new SchemaOutdatedError(
      'the database of this call does not have the schema that it needs; run `holdfast migrate`, and see that it is the primary database',
      { cause: error },
    )
  }
}
