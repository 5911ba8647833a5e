import type { ChannelModel } from 'amqplib'
import { SinkUnavailableError } from '../../db/errors.ts'
import { within } from '../../db/within.ts'
import { RabbitChannel } from './rabbitmq-channel.ts'

/** A connection with the channels that no page uses at the moment. */
export class RabbitLink {
  /** the broker's max_message_size, known once it has refused a message for it */
  largestBytes = Number.POSITIVE_INFINITY
  readonly #connection: ChannelModel
  readonly #exchange: string
  readonly #lost: () => void
  readonly #idle: RabbitChannel[] = []
  #blockedBy: string | undefined

  constructor(connection: ChannelModel, exchange: string, lost: () => void) {
    this.#connection = connection
    this.#exchange = exchange
    this.#lost = lost
    // An error ends the connection, and every message on its way then reports it.
    connection.on('error', lost)
    connection.on('close', lost)
    connection.on('blocked', (reason) => {
      this.#blockedBy = reason
    })
    connection.on('unblocked', () => {
      this.#blockedBy = undefined
    })
  }

  get blocked(): boolean {
    return this.#blockedBy !== undefined
  }

  /** What is sent into a blocked connection stays in its buffers, so a page does not begin. */
  requireUnblocked(): void {
    if (this.#blockedBy === undefined) return
    throw new SinkUnavailableError(
      `RabbitMQ takes nothing for the moment (${this.#blockedBy}); free memory or disk space of the broker`,
    )
  }

  async take(): Promise<RabbitChannel> {
    this.requireUnblocked()
    return (
      this.#idle.pop() ?? new RabbitChannel(await this.#connection.createConfirmChannel(), this.#exchange)
    )
  }

  /** A channel on which something may still be on its way is of no more use: its repeat must not meet it there. */
  give(channel: RabbitChannel, settled: boolean): void {
    this.largestBytes = Math.min(this.largestBytes, channel.namedLimitBytes ?? this.largestBytes)
    if (settled) this.#idle.push(channel)
    else channel.abandon()
  }

  async drop(): Promise<void> {
    this.#lost()
    // A broker that is away does not answer; then the connection ends by its heartbeat.
    await within(1_000, 'closing', this.#connection.close()).catch(() => undefined)
  }
}
