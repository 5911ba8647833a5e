import { MultiBar, Presets, type SingleBar } from 'cli-progress'
import { type JobView, left } from './batch-print.ts'

/** One job: a bar on a terminal, with a line for each of its ranges; elsewhere a line now and then. On standard error. */
export class BatchBar {
  readonly #bars: MultiBar | undefined
  readonly #total: SingleBar | undefined
  readonly #ranges = new Map<number, SingleBar>()
  #lastLine = Number.NEGATIVE_INFINITY

  constructor(view: JobView) {
    if (!process.stderr.isTTY || view.rowsExpected === null) return
    const of = view.rowsExact === false ? 'about {total}' : '{total}'
    this.#bars = new MultiBar(
      {
        stream: process.stderr,
        format: `{status} [{bar}] {percentage}% | {value} of ${of} rows | {failed} failed | {pace}`,
        hideCursor: true,
      },
      Presets.legacy,
    )
    this.#total = this.#bars.create(view.rowsExpected, 0, { status: view.status, failed: 0, pace: '-' })
  }

  update(view: JobView): void {
    const { status, rows, failed, rowsExpected } = view
    const pace = left(view)
    if (this.#total) {
      // An estimate may be too low.
      this.#total.setTotal(Math.max(rowsExpected ?? 0, rows + failed))
      this.#total.update(rows + failed, { status, failed, pace })
      this.#updateRanges(view)
      return
    }
    const now = performance.now()
    if (now - this.#lastLine < 2_000) return
    this.#lastLine = now
    const total =
      rowsExpected === null ? '' : ` of ${view.rowsExact === false ? 'about ' : ''}${rowsExpected}`
    process.stderr.write(`${status}: ${rows}${total} rows, ${failed} failed, ${pace}\n`)
  }

  /** Of the whole: where a range ends is a key, not a number of rows. */
  #updateRanges({ ranges, rows, failed, rowsExpected }: JobView): void {
    if (ranges.length < 2) return
    for (const range of ranges) {
      const done = range.rows + range.failed
      const total = range.last ? Math.max(1, done) : Math.max(rowsExpected ?? 0, rows + failed, 1)
      let bar = this.#ranges.get(range.range)
      if (!bar) {
        const format = `range {range} [{bar}] {value} rows in {chunks} chunks {end}`
        bar = this.#bars?.create(total, 0, {}, { format })
        if (!bar) return
        this.#ranges.set(range.range, bar)
      }
      bar.setTotal(total)
      const { chunks, last, range: n } = range
      bar.update(done, { range: n, chunks, end: last ? '| at its end' : '' })
    }
  }

  stop(): void {
    this.#bars?.stop()
  }
}
