import type { Tx } from '../db/tx.ts'
import type { Ballot } from '../db/votes.ts'
import type { JobContext } from './context.ts'
import { moveIn } from './move.ts'

/** What the votes decide: in the transaction that holds the attempt's lock. Undefined: nothing yet. */
export async function decideByVotes(
  ctx: JobContext,
  tx: Tx,
  attempt: string,
  ballots: readonly Ballot[],
): Promise<{ report: () => void } | undefined> {
  const { ready, aborts, of } = tally(ballots)
  if (aborts.length > 0) {
    const reason = describeAborts(aborts)
    return moveIn(ctx, tx, attempt, 'decide-abort', { decision: 'abort', abortCause: 'vote', reason })
  }
  if (of === 0 || ready < of) return undefined
  return moveIn(ctx, tx, attempt, 'decide-commit', { decision: 'commit', reason: 'all voted ready' })
}

export function tally(ballots: readonly Ballot[]): { ready: number; aborts: Ballot[]; of: number } {
  return {
    ready: ballots.filter((b) => b.vote === 'ready').length,
    aborts: ballots.filter((b) => b.vote === 'abort'),
    of: ballots.length,
  }
}

function describeAborts(aborts: readonly Ballot[]): string {
  return aborts
    .map(({ service, reason }) => `${service} voted abort${reason === null ? '' : `: ${reason}`}`)
    .join('; ')
}
