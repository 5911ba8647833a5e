import { MultiBar, type SingleBar } from 'cli-progress'

type Progress = { rows: number; events: number }

/**
 * Rows imported and events delivered, with rate and time to go: two bars on a terminal, elsewhere a line now and then.
 * All on standard error.
 */
export class ProgressBars {
  readonly #expected: number
  readonly #bars: { all: MultiBar; rows: SingleBar; events: SingleBar } | undefined
  #lastLine = performance.now()
  readonly #window: ({ at: number } & Progress)[] = []

  constructor(expected: number) {
    this.#expected = expected
    if (!process.stderr.isTTY) return
    const all = new MultiBar({
      stream: process.stderr,
      format: '{name} [{bar}] {percentage}% | {value}/{total} | {rate}/s | {left} to go',
      hideCursor: true,
    })
    const bar = (name: string) => all.create(expected, 0, { name, rate: '0', left: '–' })
    this.#bars = { all, rows: bar('rows  '), events: bar('events') }
  }

  update(progress: Progress): void {
    const now = performance.now()
    this.#window.push({ at: now, ...progress })
    while ((this.#window[0]?.at ?? now) < now - windowMs) this.#window.shift()
    if (this.#bars) {
      this.#bars.rows.update(progress.rows, this.#speed('rows'))
      this.#bars.events.update(progress.events, this.#speed('events'))
    } else if (now - this.#lastLine > 2_000) {
      this.#lastLine = now
      process.stderr.write(`${this.#line('rows')}; ${this.#line('events')}\n`)
    }
  }

  note(text: string): void {
    if (this.#bars) this.#bars.all.log(`${text}\n`)
    else process.stderr.write(`${text}\n`)
  }

  stop(): void {
    this.#bars?.all.stop()
  }

  #line(what: keyof Progress): string {
    const { rate, left } = this.#speed(what)
    return `${what} ${this.#window.at(-1)?.[what] ?? 0}/${this.#expected}, ${rate}/s, ${left} to go`
  }

  /** Rate over the window, and the time that the rest takes at that rate. */
  #speed(what: keyof Progress): { rate: string; left: string } {
    const first = this.#window[0]
    const last = this.#window.at(-1)
    if (!first || !last) return { rate: '0', left: '–' }
    const seconds = (last.at - first.at) / 1_000
    const rate = seconds > 0 ? (last[what] - first[what]) / seconds : 0
    const rest = this.#expected - last[what]
    const left = rest <= 0 ? '0 s' : rate > 0 ? `${Math.ceil(rest / rate)} s` : '–'
    return { rate: Math.round(rate).toLocaleString('en-US'), left }
  }
}

const windowMs = 5_000
