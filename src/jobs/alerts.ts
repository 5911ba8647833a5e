import type { Logger } from 'pino'
import type { Clock } from './clock.ts'
import type { Telemetry } from './telemetry.ts'

/** What an operator has to hear of. */
type AlertKind =
  /** a quarantined transaction, or a compensation that was given up */
  | 'requires_manual_intervention'
  /** decided, and unfinished for longer than the service level; or in doubt with no row, and not to be finished */
  | 'stuck'
  | 'participant_unreachable'
  /** a promotion or a restore: recovery waits for `holdfast tx recover --confirm-timeline` */
  | 'timeline_changed'
  /** one of our gids belongs to another role than the installation's owner role */
  | 'foreign_owner'
  /** a scheduled job has not succeeded for too long */
  | 'overdue'
  /** a job is due for longer than the service level */
  | 'jobs_lag'
  /** a job has failed for good */
  | 'job_failed'
  /** a sink has not taken an event for longer than the service level */
  | 'outbox_lag'
  /** a sink rejected events for good, and an operator has to redrive or discard them */
  | 'outbox_dead'
  /** the database went back in time under an outbox cursor, which stops until it is rebased */
  | 'outbox_restored'
  /** old events cannot leave the outbox */
  | 'outbox_kept'

export type Alert = { kind: AlertKind; subject: string; message: string }

export type AlertSettings = {
  /** gets each alert as a JSON POST `{ kind, subject, message, at, installation }` */
  webhook: string | undefined
  /** the service level: how long something may stay decided but unfinished, or committed but unpublished; default 10 minutes */
  stuckAfterMs: number
}

const repeatMs = 60 * 60 * 1000
const webhookMs = 5_000

/** Raises alerts: log at error, metric, webhook. The same one again only after an hour. */
export class Alerts {
  readonly settings: AlertSettings
  readonly #raised = new Map<string, number>()
  readonly #context: { installation: string; log: Logger; telemetry: Telemetry; clock: Clock }

  constructor(
    settings: AlertSettings,
    context: { installation: string; log: Logger; telemetry: Telemetry; clock: Clock },
  ) {
    this.settings = settings
    this.#context = context
  }

  raise(alert: Alert): void {
    const { log, telemetry, clock, installation } = this.#context
    const now = clock.now()
    for (const [key, at] of this.#raised) if (now - at >= repeatMs) this.#raised.delete(key)
    const key = `${alert.kind} ${alert.subject}`
    if (this.#raised.has(key)) return
    this.#raised.set(key, now)
    log.error({ alert: alert.kind, subject: alert.subject }, alert.message)
    telemetry.alerted(alert.kind)
    const { webhook } = this.settings
    if (webhook !== undefined) {
      const body = JSON.stringify({ ...alert, at: new Date(now).toISOString(), installation })
      this.#post(webhook, body).catch((err: unknown) =>
        log.warn({ err }, 'the alert webhook was not reached'),
      )
    }
  }

  async #post(url: string, body: string): Promise<void> {
    const response = await fetch(url, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body,
      signal: AbortSignal.timeout(webhookMs),
    })
    if (!response.ok) throw new Error(`it answered ${response.status}`)
  }
}
