/**
 * A connection that is made when it is first needed, shared by all shards, and made anew after it was lost. Making it
 * fails fast and is not repeated here: the relay's own back-off decides when to try again.
 */
export class LazyConnection<T> {
  readonly #connect: (lost: () => void) => Promise<T>
  readonly #end: (connection: T) => Promise<void>
  #current: Promise<T> | undefined

  /** `connect` is given what to call when the connection is of no more use; the next `get` then makes another one. */
  constructor(connect: (lost: () => void) => Promise<T>, end: (connection: T) => Promise<void>) {
    this.#connect = connect
    this.#end = end
  }

  get(): Promise<T> {
    if (this.#current) return this.#current
    const lost = () => {
      if (this.#current === current) this.#current = undefined
    }
    const current = this.#connect(lost)
    this.#current = current
    current.catch(lost)
    return current
  }

  async close(): Promise<void> {
    const current = this.#current
    this.#current = undefined
    // What could not be connected is reported to whoever asked for it; here it only means that there is nothing to end.
    const connection = await current?.catch(() => undefined)
    if (connection !== undefined) await this.#end(connection)
  }
}
