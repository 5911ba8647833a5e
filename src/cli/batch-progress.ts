import { SingleBar } from 'cli-progress'
import { type JobView, left } from './batch-print.ts'

/** One job: a bar on a terminal, elsewhere a line now and then. On standard error. */
export class BatchBar {
  readonly #bar: SingleBar | undefined
  #lastLine = Number.NEGATIVE_INFINITY

  constructor(view: JobView) {
    if (!process.stderr.isTTY || view.rowsExpected === null) return
    const of = view.rowsExact === false ? 'about {total}' : '{total}'
    this.#bar = new SingleBar({
      stream: process.stderr,
      format: `{status} [{bar}] {percentage}% | {value} of ${of} rows | {failed} failed | {pace}`,
      hideCursor: true,
    })
    this.#bar.start(view.rowsExpected, 0)
  }

  update(view: JobView): void {
    const { status, rows, failed, rowsExpected } = view
    const pace = left(view)
    // An estimate may be too low.
    if (this.#bar) {
      this.#bar.setTotal(Math.max(rowsExpected ?? 0, rows + failed))
      this.#bar.update(rows + failed, { status, failed, pace })
      return
    }
    const now = performance.now()
    if (now - this.#lastLine < 2_000) return
    this.#lastLine = now
    const total =
      rowsExpected === null ? '' : ` of ${view.rowsExact === false ? 'about ' : ''}${rowsExpected}`
    process.stderr.write(`${status}: ${rows}${total} rows, ${failed} failed, ${pace}\n`)
  }

  stop(): void {
    this.#bar?.stop()
  }
}
