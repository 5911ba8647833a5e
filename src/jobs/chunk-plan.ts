/**
 * How many rows the next chunk takes, and how a chunk that fails is narrowed down to the rows that fail: halved again
 * and again, so that whatever can be processed is, and a row that fails by itself is set aside. Pure, and forgotten by
 * a crash: then the next run begins at the position with a whole chunk.
 */
export class ChunkPlan {
  #size: number
  /** what is left of a failed chunk, the next part last; `first`: the first half of what failed */
  readonly #parts: { size: number; first: boolean }[] = []
  #setAside = false

  constructor(size: number) {
    this.#size = size
  }

  /** How many rows to read; `setAside`: this one row failed by itself and is to be passed over. */
  get next(): { size: number; setAside: boolean } {
    return { size: this.#parts.at(-1)?.size ?? this.#size, setAside: this.#setAside }
  }

  /** Whether it is narrowing down. Such parts are not tried again: they are likely to fail, and cheap to divide. */
  get narrowing(): boolean {
    return this.#parts.length > 0
  }

  succeeded(): void {
    this.#setAside = false
    const passed = this.#parts.pop()
    if (passed?.first !== true) return
    // The first half passed, so what failed is in the second.
    const second = this.#parts.pop()
    if (second) this.#divide(second.size)
  }

  /** `rows`: how many there were. */
  failed(rows: number): void {
    const part = this.#parts.pop()
    // A whole chunk may have been read when its size was another one.
    const size = part ? Math.min(part.size, rows) : rows
    if (size > 1) this.#divide(size)
    else {
      this.#parts.push({ size: 1, first: false })
      this.#setAside = true
    }
  }

  /** Of whole chunks from the next one on. */
  resize(size: number): void {
    this.#size = size
  }

  /** Somebody else moved the position: what failed is no longer what comes next. */
  reset(): void {
    this.#parts.length = 0
    this.#setAside = false
  }

  #divide(size: number): void {
    if (size <= 1) {
      this.#parts.push({ size, first: false })
      return
    }
    const first = Math.ceil(size / 2)
    this.#parts.push({ size: size - first, first: false }, { size: first, first: true })
  }
}
