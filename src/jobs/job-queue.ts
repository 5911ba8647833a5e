/** A queue of jobs as the config describes it. */
export type JobQueue = {
  /** how many of its jobs one worker process runs at once; default 4 */
  readonly concurrency?: number
  /** how many of them all worker processes together run at once; default no limit */
  readonly globalConcurrency?: number
  /** how many runs all worker processes together begin within so many milliseconds; default no limit */
  readonly rateLimit?: { readonly max: number; readonly durationMs: number }
}

/** Where jobs are whose definition names no queue, and compensations. */
export const defaultQueue = 'jobs'

/** The queues of what is built in; a job cannot be on one of them. */
export const builtInQueues = ['outbox', 'cleanup', 'batch', 'schedules'] as const

export function queueProblem(name: string): string | undefined {
  if (!/^[a-z][a-z0-9-]{0,39}$/.test(name)) return 'has lower-case letters, digits and -, at most 40'
  if ((builtInQueues as readonly string[]).includes(name)) return 'is one of the queues that are built in'
  return undefined
}

export function queueOf({ queue = defaultQueue }: { readonly queue?: string | undefined }): string {
  return queue
}
