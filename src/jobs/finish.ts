import type { Participant } from '../db/databases.ts'
import type { DistributedTransaction } from '../db/distributed-transactions.ts'
import { UnknownParticipantError } from '../db/errors.ts'
import { fence, readMarker } from '../db/markers.ts'
import { messageOf } from '../db/message-of.ts'
import { commitPrepared, rollbackPrepared } from '../db/prepared.ts'
import { confirmReplicated } from '../db/replication.ts'
import { isContention, isPassing } from '../db/sqlstate.ts'
import type { Step } from '../db/steps.ts'
import { reached } from '../db/steps.ts'
import { formatGid } from '../db/transaction-name.ts'
import { within } from '../db/within.ts'
import type { JobContext } from './context.ts'
import { move, setAside } from './move.ts'

/**
 * Driving a decided attempt to its end. Both directions are idempotent and may run in several processes at once
 * (caller, recovery, a second recovery): what one finishes the others find finished.
 *
 * Commit, for a decision that is durable, per participant: COMMIT PREPARED. 42704 is only a question; the marker
 * answers: `committed` means that somebody was faster, anything else contradicts the decision (finished by hand) and is quarantined.
 *
 * Abort, per participant: ROLLBACK PREPARED, then the fence, in this order, since the fence would wait for a prepared
 * marker. A PREPARE that was still on its way between the two shows as a lock wait (55P03) and is rolled back in the
 * next round; one that comes later fails at the fence. A `committed` marker contradicts the decision.
 */
export type Progress<State> = { state: State; finished: number; of: number }

/** How long one participant is waited for; then it is left to recovery, and the others are not held up. */
const patienceMs = 10_000

type Attempt = Pick<DistributedTransaction, 'attempt' | 'name' | 'participants'>
type Contradiction = { contradiction: string }
/** Participants that are not to be touched now, with the reason. */
type Unavailable = ReadonlyMap<string, string>

const none: Unavailable = new Map()
type Part = 'finished' | Contradiction

/** For a decision that was read: whoever took it may have failed to learn that it is durable. */
export async function driveCommit(
  ctx: JobContext,
  row: Attempt,
  leaveOut: Unavailable = none,
): Promise<Progress<'committed' | 'committing'>> {
  await confirmReplicated(ctx.databases.primary)
  return driveOwnCommit(ctx, row, leaveOut)
}

/** For a decision that the caller has just seen acknowledged. */
export async function driveOwnCommit(
  ctx: JobContext,
  row: Attempt,
  leaveOut: Unavailable = none,
): Promise<Progress<'committed' | 'committing'>> {
  const finished = await forEachParticipant(
    ctx,
    row,
    leaveOut,
    'commit.committed-one',
    async (participant) => {
      if ((await commitPrepared(participant, gidOf(ctx, row, participant.name))) === 'done') return 'finished'
      const marker = await readMarker(participant, row.attempt)
      if (marker === 'committed') {
        // Whoever committed it may not have waited until a standby has it.
        await confirmReplicated(participant)
        return 'finished'
      }
      return {
        contradiction: `decided commit, but ${participant.name} has neither the prepared transaction nor its committed marker: it was rolled back by hand, or lost`,
      }
    },
  )
  const of = row.participants.length
  if (finished < of) return { state: 'committing', finished, of }
  ctx.outboxWakeup.committed()
  await reached('commit.committed-all')
  await move(ctx, row.attempt, 'all-committed', { owner: null })
  await reached('commit.recorded')
  return { state: 'committed', finished, of }
}

export async function driveAbort(
  ctx: JobContext,
  row: Attempt & Pick<DistributedTransaction, 'abortCause'>,
  leaveOut: Unavailable = none,
): Promise<Progress<'rolled_back' | 'rolling_back'>> {
  const finished = await forEachParticipant(
    ctx,
    row,
    leaveOut,
    'rollback.fenced-one',
    async (participant) => {
      const outcome = await proveAborted(participant, row.attempt, gidOf(ctx, row, participant.name))
      if (outcome === 'aborted') return 'finished'
      return { contradiction: `decided abort, but ${participant.name} committed: it was committed by hand` }
    },
  )
  const of = row.participants.length
  if (finished < of) return { state: 'rolling_back', finished, of }
  await reached('rollback.fenced-all')
  // The owner stays: until its run has ended, what it did outside may still be under way, and compensation waits.
  await move(ctx, row.attempt, row.abortCause === 'deadline' ? 'clean-up' : 'all-fenced')
  await reached('rollback.recorded')
  return { state: 'rolled_back', finished, of }
}

/** Rolls back and fences one participant; returns what its marker says then. */
export async function proveAborted(
  participant: Participant,
  attempt: string,
  gid: string,
): Promise<'committed' | 'aborted'> {
  for (let roundsLeft = 5; ; roundsLeft--) {
    await rollbackPrepared(participant, gid)
    try {
      return await fence(participant, attempt)
    } catch (error) {
      if (!isContention(error) || roundsLeft <= 0) throw error
    }
  }
}

/** Runs a step on all participants in parallel; returns how many are finished. Failures are left to recovery. */
async function forEachParticipant(
  ctx: JobContext,
  row: Attempt,
  leaveOut: Unavailable,
  step: Step,
  act: (participant: Participant) => Promise<Part>,
): Promise<number> {
  const parts = await Promise.allSettled(
    row.participants.map(async (name) => {
      const unavailable = leaveOut.get(name)
      if (unavailable !== undefined) return { left: unavailable }
      const part = await within(patienceMs, `finishing on ${name}`, act(ctx.databases.get(name)))
      await reached(step)
      return part
    }),
  )
  let finished = 0
  for (const [i, part] of parts.entries()) {
    const participant = row.participants[i]
    if (part.status === 'rejected') await leaveOrSetAside(ctx, row, participant ?? '', part.reason)
    else if (part.value === 'finished') finished++
    else if ('contradiction' in part.value) {
      const { contradiction } = part.value
      await setAside(ctx, row.attempt, contradiction, {
        outcome: 'heuristic',
        participant: participant ?? null,
      })
    }
  }
  return finished
}

/** What time may heal is left to the next round; anything else, as a role that lacks a right, is an operator's. */
async function leaveOrSetAside(
  ctx: JobContext,
  row: Attempt,
  participant: string,
  error: unknown,
): Promise<void> {
  if (isPassing(error) || error instanceof UnknownParticipantError) {
    ctx.log.warn({ err: error, name: row.name, participant }, 'decided, but not finished here yet')
  } else await setAside(ctx, row.attempt, `cannot be finished on ${participant}: ${messageOf(error)}`)
}

function gidOf(ctx: JobContext, row: Attempt, participant: string): string {
  return formatGid({
    installation: ctx.installation,
    policy: 'presumed-abort',
    participant,
    attempt: row.attempt,
    name: row.name,
  })
}
