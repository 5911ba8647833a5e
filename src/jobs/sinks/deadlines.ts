/** `passed`: it was the time of this one that ended it, not the page */
export type Deadline = { signal: AbortSignal; passed(): boolean; clear(): void }

/**
 * The deadlines of one page's requests, all of which end with the page: when its signal aborts or its time is over. That
 * signal lives as long as its
 * worker: one listener for a page, taken off again, where AbortSignal.any would leave a trace of each request on it.
 */
export class Deadlines {
  readonly #ms: number
  readonly #page: AbortSignal
  readonly #pageTimer: NodeJS.Timeout
  readonly #running = new Set<AbortController>()
  #over: boolean
  readonly #stop = () => {
    this.#over = true
    for (const controller of this.#running) controller.abort()
  }

  constructor(ms: number, page: AbortSignal, pageMs: number) {
    this.#ms = ms
    this.#page = page
    this.#over = page.aborted
    this.#pageTimer = setTimeout(this.#stop, pageMs)
    page.addEventListener('abort', this.#stop)
  }

  start(): Deadline {
    const controller = new AbortController()
    if (this.#over) controller.abort()
    this.#running.add(controller)
    let late = false
    const timer = setTimeout(() => {
      late = true
      controller.abort()
    }, this.#ms)
    return {
      signal: controller.signal,
      passed: () => late,
      clear: () => {
        clearTimeout(timer)
        this.#running.delete(controller)
      },
    }
  }

  close(): void {
    clearTimeout(this.#pageTimer)
    this.#page.removeEventListener('abort', this.#stop)
  }
}
