/** How many are kept; each shard has two pages of a sink under way. */
const most = 16

/** Pages differ a little; a buffer for one should do for the next. */
const step = 256 * 1024

/** Larger ones are not kept: a rare large event must not hold its memory for ever. */
const largestKept = 4 * 1024 ** 2

/**
 * Memory for encoded pages, used again and again. Buffers that live as long as a page reach the collector's old
 * generation, and dozens of megabytes of dead ones pile up there before it looks at it.
 */
export class ReusedBuffers {
  readonly #free: Buffer[] = []

  /** With room for at least so many bytes. */
  take(bytes: number): Buffer {
    const fit = this.#free.findIndex(({ length }) => length >= bytes)
    const [buffer] = fit === -1 ? [] : this.#free.splice(fit, 1)
    return buffer ?? Buffer.allocUnsafeSlow(Math.ceil(bytes / step) * step)
  }

  /** Only of what nobody sends or reads any more. */
  giveBack(buffer: Buffer): void {
    if (this.#free.length < most && buffer.length <= largestKept) this.#free.push(buffer)
  }
}
