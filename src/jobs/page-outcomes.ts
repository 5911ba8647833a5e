/**
 * What a sink said of the events of a page that was then rolled back; kept by the relay of the cursor, in memory: it spares
 * a sink that remembers nothing what it took already. Whoever comes after a crash sends the page again.
 */
export class Outcomes {
  #epoch = -1n
  readonly taken = new Set<string>()
  readonly rejected = new Map<string, { reason: string; permanent: boolean }>()

  /** Forgets what belongs to another list. */
  of(epoch: bigint): this {
    if (epoch !== this.#epoch) {
      this.taken.clear()
      this.rejected.clear()
    }
    this.#epoch = epoch
    return this
  }

  /** Forgets what is committed. */
  forgetUpTo(id: bigint): void {
    for (const events of [this.taken, this.rejected]) {
      for (const event of events.keys()) if (BigInt(event) <= id) events.delete(event)
    }
  }
}
