import type { CloudEvent } from './cloud-event.ts'

/**
 * An event as the relay reads it: its JSON text, ready to be sent. Parsed when somebody asks for what is in it, since most
 * sinks need the text and the key alone.
 */
export class OutboxEvent {
  /** its place in the outbox, or among what was parked */
  readonly id: string
  /** what orders it: the CloudEvent's partitionkey, or else its subject */
  readonly partitionkey: string | null
  /** the CloudEvent in JSON (structured mode) */
  readonly json: string
  /** of a parked event: how often it was rejected so far */
  readonly attempts: number
  /** of a parked event: the epoch of the replay in which it was rejected */
  readonly replay: string | null
  #attributes: CloudEvent | undefined

  constructor(
    id: string,
    partitionkey: string | null,
    json: string,
    attempts = 0,
    replay: string | null = null,
  ) {
    this.id = id
    this.partitionkey = partitionkey
    this.json = json
    this.attempts = attempts
    this.replay = replay
  }

  get attributes(): CloudEvent {
    this.#attributes ??= JSON.parse(this.json) as CloudEvent
    return this.#attributes
  }

  get eventId(): string {
    return this.attributes.id
  }

  get type(): string {
    return this.attributes.type
  }
}
