/**
 * The seam for crash tests and for the demo: every point of the two-phase paths at which a process may die has a
 * name. Nothing happens at a step unless a watcher is installed, which only tests and the demo do. Statements that
 * normally leave in one flush are sent one after the other while a step between them is watched, so that a kill can
 * land exactly there.
 */
export const STEPS = [
  'chunk.staging',
  'chunk.prepared',
  'chunk.committed',
  'batch.ranges-recorded',
  'batch.range-split',
  'begin.recorded',
  'begin.worked',
  'begin.prepared-one',
  'begin.prepared-all',
  'begin.pending',
  'commit.decided',
  'commit.committed-one',
  'commit.committed-all',
  'commit.recorded',
  'rollback.decided',
  'rollback.fenced-one',
  'rollback.fenced-all',
  'rollback.recorded',
  'recovery.listed',
  'recovery.decided',
  'run.effects',
  'run.effects-done',
  'run.taken-over',
  'job.claimed',
  'job.committed',
  'job.failing',
  'job.ended',
  'compensation.claimed',
  'compensation.ran',
  'cleanup.recovered',
  'schedule.moved',
  'schedule.recorded',
  'schedule.committed',
  'epoch.started',
  'page.staging',
  'page.prepared',
  'page.rejected',
  'page.published',
  'page.committed',
  'idempotency.claimed',
  'idempotency.worked',
  'idempotency.completed',
] as const

export type Step = (typeof STEPS)[number]

type Watcher = { steps: ReadonlySet<Step>; reached(step: Step): Promise<void> | void }

let watcher: Watcher | undefined

/** Install (or with undefined remove) the watcher of this process. */
export function watchSteps(next: Watcher | undefined): void {
  watcher = next
}

/** Whether somebody waits for this step; the caller then splits the flush around it. */
export function isWatched(step: Step): boolean {
  return watcher?.steps.has(step) === true
}

/** Announce a step. Resolves at once unless a watcher holds it. */
export async function reached(step: Step): Promise<void> {
  if (watcher?.steps.has(step)) await watcher.reached(step)
}
