import type { Step } from '../../db/steps.ts'

/** One SIGKILL: at a step or anywhere, once this share of the rows or of the events is through. */
export type PlannedKill = { after: 'rows' | 'events'; share: number; step: Step | undefined }

const kinds: readonly { after: 'rows' | 'events'; step: Step | undefined }[] = [
  { after: 'rows', step: 'chunk.prepared' },
  { after: 'events', step: 'page.prepared' },
  { after: 'rows', step: undefined },
  { after: 'events', step: 'page.published' },
  { after: 'rows', step: 'chunk.staging' },
  { after: 'events', step: undefined },
]

/** Kills spread evenly over the run, taking turns between chunk and page, between the steps and anywhere. */
export function planKills(count: number): PlannedKill[] {
  return Array.from({ length: count }, (_, i) => {
    const kind = kinds[i % kinds.length] ?? { after: 'rows' as const, step: undefined }
    return { ...kind, share: (0.9 * (i + 0.5)) / count }
  })
}
