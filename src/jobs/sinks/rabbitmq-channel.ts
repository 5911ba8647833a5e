import type { ConfirmChannel, Options } from 'amqplib'
import { RejectedEventError, SinkUnavailableError } from '../../db/errors.ts'
import { messageOf } from '../../db/message-of.ts'

export type Message = {
  routingKey: string
  content: Buffer
  properties: Options.Publish & { messageId: string }
}

/**
 * A channel with publisher confirms. It serves one page at a time, so no message id is on its way twice: the return of
 * an unroutable message, which comes before its confirm, is told apart by that id.
 */
export class RabbitChannel {
  readonly #channel: ConfirmChannel
  readonly #exchange: string
  readonly #returned = new Map<string, string>()
  #closedBy: unknown
  #closed = false

  constructor(channel: ConfirmChannel, exchange: string) {
    this.#channel = channel
    this.#exchange = exchange
    channel.on('return', ({ fields, properties }) => {
      const { replyText } = fields as { replyText?: string }
      this.#returned.set(String(properties.messageId), replyText ?? 'returned')
    })
    channel.on('error', (error) => {
      this.#closedBy = error
    })
    channel.on('close', () => {
      this.#closed = true
    })
  }

  /** Resolves once the broker has taken it; with the rejection when no queue wants it. */
  send({ routingKey, content, properties }: Message): Promise<RejectedEventError | undefined> {
    const { messageId } = properties
    return new Promise((resolve, reject) => {
      const settle = (error: unknown) => {
        const reason = this.#returned.get(messageId)
        this.#returned.delete(messageId)
        if (error) reject(this.#unavailable(error))
        else resolve(reason === undefined ? undefined : this.#unroutable(routingKey, reason))
      }
      try {
        this.#channel.publish(this.#exchange, routingKey, content, { ...properties, mandatory: true }, settle)
      } catch (error) {
        // Thrown before anything was written. These two say that the message does not fit into AMQP's fields; any other,
        // that the channel or the connection is closed or closing.
        if (!(error instanceof TypeError || error instanceof RangeError)) reject(this.#unavailable(error))
        else {
          const reason = `it cannot be encoded: ${messageOf(error)}`
          resolve(new RejectedEventError(reason, { permanent: true, cause: error }))
        }
      }
    })
  }

  /** The size that the broker named when it refused a message for being larger, which closes the channel. */
  get namedLimitBytes(): number | undefined {
    const named = /larger than configured max size (\d+)/.exec(messageOf(this.#closedBy ?? ''))?.[1]
    return named === undefined ? undefined : Number(named)
  }

  /** Gives it up, whatever is still on its way. */
  abandon(): void {
    if (this.#closed) return
    this.#closed = true
    // Not waited for: a blocked broker does not answer. Without the channel nothing is left to report.
    this.#channel.close().catch(() => undefined)
  }

  #unroutable(routingKey: string, reason: string): RejectedEventError {
    return new RejectedEventError(
      `${this.#where} has no queue for routing key ${JSON.stringify(routingKey)} (${reason}); bind one, or give the exchange an alternate exchange`,
    )
  }

  #unavailable(error: unknown): SinkUnavailableError {
    const cause = this.#closedBy ?? error
    return new SinkUnavailableError(
      `RabbitMQ: ${this.#where} did not take an event: ${messageOf(cause)}${this.#advice(cause)}`,
      { cause },
    )
  }

  #advice(cause: unknown): string {
    const code = cause instanceof Error && 'code' in cause ? cause.code : undefined
    if (code === 404) return `; declare the exchange, or correct the option exchange`
    if (code === 403) return `; the user needs the permission to write to it`
    return ''
  }

  get #where(): string {
    return this.#exchange === '' ? 'the default exchange' : `exchange ${JSON.stringify(this.#exchange)}`
  }
}
