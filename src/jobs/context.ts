import type { Logger } from 'pino'
import type { Databases } from '../db/databases.ts'
import type { EventLimit } from '../db/outbox.ts'
import { readSlotBudget, type SlotBudget } from '../db/servers.ts'
import type { WorkerKind } from '../db/workers.ts'
import { type AlertSettings, Alerts } from './alerts.ts'
import { type Clock, systemClock } from './clock.ts'
import type { KnownOperation, Operation } from './operations.ts'
import { OutboxWakeup } from './outbox-wakeup.ts'
import { OwnerLease } from './owner-lease.ts'
import { Telemetry } from './telemetry.ts'

/** What every job needs. */
export type JobContext = {
  databases: Databases
  /** whose gids are ours */
  installation: string
  /** who we are */
  lease: OwnerLease
  /** by name; runDistributed adds those that it is given */
  operations: Map<string, KnownOperation>
  log: Logger
  telemetry: Telemetry
  alerts: Alerts
  clock: Clock
  /** to be told of what is committed */
  outboxWakeup: OutboxWakeup
  /** how large an event of a type may be */
  eventLimit: (type: string) => EventLimit | undefined
  /** attempts over all processes that the servers have room for */
  slotBudget: SlotBudget
}

export type JobContextOptions = {
  databases: Databases
  installation: string
  kind: WorkerKind
  leaseMs: number
  log: Logger
  operations?: ReadonlyMap<string, Operation>
  alerts?: Partial<AlertSettings>
  clock?: Clock
  eventLimit?: JobContext['eventLimit']
}

/** Puts it together; the caller ends `lease` and `databases`. */
export async function createJobContext(options: JobContextOptions): Promise<JobContext> {
  const { databases, installation, kind, leaseMs, log, clock = systemClock } = options
  const budget = await readSlotBudget(databases)
  const telemetry = new Telemetry(log)
  return {
    databases,
    installation,
    lease: new OwnerLease({
      sql: databases.primary.sql,
      kind,
      leaseMs,
      wants: databases.primary.limits.staging,
      budget,
      log,
    }),
    operations: new Map(options.operations),
    log,
    telemetry,
    alerts: new Alerts(
      { webhook: undefined, stuckAfterMs: 10 * 60 * 1000, ...options.alerts },
      { installation, log, telemetry, clock },
    ),
    clock,
    outboxWakeup: new OutboxWakeup(databases.primary, log),
    eventLimit: options.eventLimit ?? (() => undefined),
    slotBudget: budget,
  }
}
